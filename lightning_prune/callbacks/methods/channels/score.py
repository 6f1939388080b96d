"""Channel pruning by any score as a callback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.families.channels import ChannelPruning
from lightning_prune.callbacks.guard import check_diverged
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.trainer import loss_scale
from lightning_prune.channels.select.selection import Resource, Selection
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.errors import PhaseError
from lightning_prune.functional.least_squares import Form
from lightning_prune.scores import ScoreLike, find_score
from lightning_prune.scoring.collect import collect
from lightning_prune.scoring.reconstruct import calls_of, check_form, told
from lightning_prune.scoring.reconstruct import reconstruct as refit_layers
from lightning_prune.scoring.scope import Scope, check_scope, importance
from lightning_prune.support.modes import mode


class ScorePruningCallback(ChannelPruning):
    """Channel pruning by a score, on any network that the score can judge, with any norm.

    The channels of least score are removed at once, after a warm-up, or in several removals with training and a fresh
    score between them. See `scores.score_names` for the names: norms of filters, their distances and correlations,
    BatchNorm scales, Taylor expansions of the loss, ranks and variances of feature maps, and a random control. Each
    score's class says what the paper does and how layers are made comparable.

    Args:
        score: by name, such as "taylor", as a `Score`, or as a function of the `ChannelUnits`; None: "taylor".
        scope: among whom channels are ranked: "global" all, "layer" the same share of each layer, "isomorphic" the same
            share of layers of like structure, ranked together (Fang et al., arXiv 2407.04616).
        steps: removals; from 2 on the first is at the start of the sparsify phase, the last at its end, and each leaves
            the same share of what it finds. ``min_keep`` is then of the channels that it finds.
        score_batches: training batches on which a score of activations or gradients is measured, in eval mode.
        reconstruct: whether the layers that read removed channels are refitted on those batches right after a removal:
            "weights" all of their weights, "scale" a factor for each channel, see `scoring.reconstruct`; None: no.
        target_macs: share of the multiply-accumulates that may be left, in (0, 1); met within 1 %. Half of them
            if nothing else is given.
        target_params: the same for parameters.
        target_channels: the same for channels, of those that may be removed.
        target_latency: the same for the CPU latency, measured. Give one target.
        warmup: training before the removal. An int counts epochs, a float is a share, "300 steps" steps.
        sparsify: further training up to the removal, in which the selection is logged; as ``warmup``.
        finetune: training after the removal; None takes what is left.
        network: name of the child of the LightningModule to prune; None: the innermost that holds all parameters.
        exclude: fnmatch patterns on names of layers, whole or from any dot on, whose channels stay.
        prune_frozen: whether layers go too that do not train.
        min_keep: least share of each layer's channels to keep; not of a branch that does nothing.
        divisor: channel counts of cut layers become multiples of it; 8 or 16 suit most hardware.
        after: "finetune" goes on with the weights that are left, "retrain" starts from fresh ones.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the removal; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this at the removal.
        latency_batch: batch size at which the CPU latency before and after is measured; 0: not at all.
        latency_runtime: where latency is measured, "eager" or "onnxruntime" (extra "onnx").
        latency_table: JSON file that keeps the measured times of layers, by machine, runtime and threads; None: none.
        histogram_every: epochs between histograms of the scores; 0: never.
        surgery: further arguments of `prune_channels`: form, groups, attention, allow_inexact, norms.

    Raises:
        ValueError: an argument out of its range.
    """

    default: ClassVar[str] = "taylor"

    def __init__(
        self,
        score: ScoreLike | None = None,
        scope: Scope = "global",
        steps: int = 1,
        score_batches: int = 20,
        reconstruct: Form | None = None,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_channels: float | None = None,
        target_latency: float | None = None,
        warmup: Duration = 0.5,
        sparsify: Duration = 0,
        finetune: Duration | None = None,
        network: str | None = None,
        exclude: Sequence[str] = (),
        prune_frozen: bool = False,
        min_keep: float = 0.05,
        divisor: int = 1,
        after: Literal["finetune", "retrain"] = "finetune",
        recalibrate_batches: int = 20,
        max_gap: float = 0.05,
        latency_batch: int = 0,
        latency_runtime: str = "eager",
        latency_table: str | None = None,
        histogram_every: int = 0,
        surgery: dict[str, Any] | None = None,
    ) -> None:
        check_scope(scope)
        check_form(reconstruct)
        self.reconstruct = reconstruct
        self.scope, self.rating = scope, find_score(self.default if score is None else score)
        if score_batches < 1:
            raise ValueError(f"score_batches={score_batches} must be a positive number, such as 20.")
        if steps < 1:
            raise ValueError(f"steps={steps} must be a positive number of removals.")
        once = {"target_latency": target_latency is not None, "latency_batch": latency_batch > 0}
        for name, given in (once | {"after": after == "retrain"}).items():
            if given and steps > 1:
                raise ValueError(f"steps={steps} and {name}={locals()[name]!r} do not go together: remove at once.")
        self.steps, self.score_batches = steps, score_batches
        super().__init__(**options_of(ChannelPruning, locals()))

    @torch.no_grad()
    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self._check_steps(trainer)
        super().rehearse(trainer, pl_module, batch)
        if "gradients" in self.rating.needs:
            with mode(pl_module, False), torch.compiler.set_stance("force_eager"):
                self.rating.loss(*calibrate.run(trainer, pl_module, batch, self.calibration_forward))

    def look(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, Tensor]:
        def run(batch: Any) -> tuple[Any, Tensor | None]:
            return calibrate.run(trainer, pl_module, batch, self.calibration_forward)

        # What some scores and proofs choke on.
        check_diverged(self.root.named_parameters(), type(self).__name__, self.seen)
        data = self.rating.needs != "weights"
        batches = calibrate.calibration_batches(trainer, self.score_batches) if data else ()
        found = collect(self.rating, self.units, batches, run, loss_scale(trainer), module=pl_module)
        # What is combined to groups is on the CPU, which not every backend reduces.
        return {name: value.to(pl_module.device) for name, value in found.items()} if trainer.world_size > 1 else found

    def score(self, units: ChannelUnits) -> Tensor:
        return importance(self.rating, units, self.observed, self.scope)

    def means(self) -> Mapping[str, Tensor]:
        return self.rating.means(self.observed)

    # ---- several removals -------------------------------------------------------------------------------------------

    def reset(self) -> None:
        super().reset()
        self.done = 0  # removals
        self.whole: dict[str, float] = {"macs": 1.0, "params": 1.0, "channels": 1.0}  # shares that they left

    def budget_now(self) -> tuple[Resource, float] | None:
        if self.steps == 1 or self.budget is None:
            return super().budget_now()
        resource, share = self.budget
        return resource, min(1.0, share ** ((self.done + 1) / self.steps) / self.whole[resource])

    def shares(self, selection: Selection) -> dict[str, float]:
        return {name: value * self.whole.get(name, 1.0) for name, value in super().shares(selection).items()}

    def _check_steps(self, trainer: Trainer) -> None:
        least = self.steps - 1
        length = self.phases.prune - self.phases.begin if self.phases is not None else least
        if length < least and not getattr(trainer, "fast_dev_run", False):
            raise PhaseError(
                f"steps={self.steps} removals need a sparsify phase of {least} batches or more, found {length}: give "
                "sparsify=..., such as 0.3 of the training."
            )

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self._check_steps(trainer)
        super().begin(trainer, pl_module, batch)

    def before_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.phases is not None
        length = self.phases.prune - self.phases.begin
        while self.done < self.steps - 1 and self.seen >= self.phases.begin + self.done * length // (self.steps - 1):
            if self._remove_once(trainer, pl_module, early=False):
                self.whole = {name: self.numbers[name] for name in self.whole}
            self.done += 1
            self.begin(trainer, pl_module, None)
        super().before_batch(trainer, pl_module)

    def remove(self, trainer: Trainer, pl_module: LightningModule, early: bool) -> bool:
        self.done = self.steps - 1
        return self._remove_once(trainer, pl_module, early)

    def _remove_once(self, trainer: Trainer, pl_module: LightningModule, early: bool) -> bool:
        dense = deepcopy(self.root) if self.reconstruct is not None else None
        removed = super().remove(trainer, pl_module, early)
        if not removed or dense is None or self.reconstruct is None or self.after == "retrain":
            return removed
        assert self.pruned is not None
        batches = calibrate.calibration_batches(trainer, self.score_batches)

        def run(batch: Any) -> Any:
            return calibrate.run(trainer, pl_module, batch, self.calibration_forward)

        with mode(pl_module, False), torch.compiler.set_stance("force_eager"):
            calls = calls_of(self.root, run, batches)
            refits = refit_layers(self.root, dense, self.pruned.plan, calls, form=self.reconstruct)
        for refit in refits if trainer.world_size > 1 else ():  # each rank has seen batches of its own
            for p in self.root.get_submodule(refit.layer).parameters():
                p.copy_(trainer.strategy.broadcast(p.detach()))
        rank_zero_info(f"{type(self).__name__}: {told(refits)}.")
        return removed

    def state(self) -> dict[str, Any]:
        return super().state() | {"done": self.done, "whole": dict(self.whole)}

    def restore(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        super().restore(pl_module, state)
        self.done, self.whole = state["done"], dict(state["whole"])


class FPGMCallback(ScorePruningCallback):
    """Filter pruning via geometric median (He et al., arXiv 1811.00250): `ScorePruningCallback` with score "fpgm"."""

    default = "fpgm"
