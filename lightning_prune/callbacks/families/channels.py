"""The family that removes channels: units are groups of channels, the outcome is a plan that is applied in mid-fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_prune.callbacks.families.aim import LatencyAim
from lightning_prune.callbacks.families.choice import ChannelChoice
from lightning_prune.callbacks.logs import PHASES, tell_removed, warn_all_stay
from lightning_prune.callbacks.options import check_channel_options
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.step import trained_by
from lightning_prune.callbacks.trainer import announce_removal, averaged_copies, log_to_loggers, shapes_may_change
from lightning_prune.channels.analysis.stages import silence_
from lightning_prune.channels.remove import Pruned, remove_channels
from lightning_prune.channels.select.selection import Resource
from lightning_prune.channels.select.taps import scale_readers_
from lightning_prune.channels.surgery.empty import branch_names
from lightning_prune.functional.budget import one_share
from lightning_prune.masks import detach
from lightning_prune.support.averages import copies_of
from lightning_prune.support.retrain import reinitialise


class ChannelPruning(ChannelChoice):
    """Base of the methods that remove channels. A subclass gives ``score(units) -> [groups]`` and what else it needs.

    `ChannelUnits.aggregate` makes scores of groups from values of channels. A group of +inf stays, a layer of -inf goes
    whole. Names of gates are those of modules (their outputs) or parameters; what is kept has none any more.

    Args:
        target_macs: share of the multiply-accumulates that may be left, in (0, 1); met within 1 %.
        target_params: the same for parameters.
        target_channels: the same for channels, of those that may be removed.
        target_latency: the same for the measured latency at batch size ``latency_batch`` (1 if that is 0), within 3 %
            where widths are that fine, see `LatencySearch`. Give one target; half of the MACs if none is given.
        warmup: training before the sparsify phase. An int counts epochs, a float is a share, "300 steps" steps.
        sparsify: training up to the removal at the start of the next batch; as ``warmup``.
        finetune: training after the removal; None takes what is left.
        network: name of the child of the LightningModule to prune; None: the innermost that holds all parameters.
        exclude: fnmatch patterns on names of layers, whole or from any dot on, whose channels stay.
        prune_frozen: whether layers go too that do not train (requires_grad=False, or held by no optimizer).
        min_keep: least share of each layer's channels to keep; not of a branch that does nothing.
        divisor: channel counts of cut layers become multiples of it; 8 or 16 suit most hardware.
        after: "finetune" goes on with the weights that are left, "retrain" starts from fresh ones.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the removal; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this at the removal.
        latency_batch: batch size at which the CPU latency before and after is measured; 0: not at all.
        latency_runtime: where latency is measured, "eager" or "onnxruntime" (extra "onnx").
        latency_table: JSON file that keeps the measured times of layers, by machine, runtime and threads; None: none.
        histogram_every: log histograms of the scores every that many epochs; 0: never.
        surgery: further arguments of `prune_channels`: form, groups, attention, allow_inexact, norms.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_channels: float | None = None,
        target_latency: float | None = None,
        warmup: Duration = 0.1,
        sparsify: Duration = 0.5,
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
        check_channel_options(min_keep, divisor, after, surgery)
        shares = {"macs": target_macs, "params": target_params, "channels": target_channels, "latency": target_latency}
        given: tuple[Any, float] = one_share(shares) or ("macs", 0.5)
        self.budget: tuple[Resource, float] | None = None if given[0] == "latency" else given
        self.aim = LatencyAim(target_latency, latency_batch, latency_runtime, latency_table)
        self.exclude, self.prune_frozen = exclude, prune_frozen
        self.min_keep, self.divisor, self.after = min_keep, divisor, after
        self.surgery = surgery or {}
        super().__init__(network, warmup, sparsify, finetune, recalibrate_batches, max_gap, histogram_every)

    def reset(self) -> None:
        super().reset()
        self.pruned: Pruned | None = None

    @property
    def targeted(self) -> bool:
        """Whether a target says how much goes; else it is the rule's parameter."""
        return self.budget is not None or self.aim.target is not None

    # ---- what a method may say further ------------------------------------------------------------------------------

    silenced: Collection[str] = ()  # layers whose weight and bias become zero at the removal: ends of whole branches
    if_all_stay = "Raise delta, regularize for longer (sparsify, travel or lam), or give a target."

    def means(self) -> Mapping[str, Tensor]:
        """{name of one of the units' taps: means of its channels} that biases take over from what is removed."""
        return {}

    def folds(self) -> Tensor | None:
        """By what the readers of each group's channels are multiplied when its gate goes: [groups]; None: by 1."""
        return None

    # ---- the family -------------------------------------------------------------------------------------------------

    def remove(self, trainer: Trainer, pl_module: LightningModule, early: bool) -> bool:
        assert self.selector is not None
        # Before the first step, norms that start at zero have not had their time.
        selection = self.select(trainer, pl_module, aim=True, removal=self.seen > 0)
        selector, self.selector = self.selector, None
        self.aim.release()
        detach(pl_module)
        copies = copies_of(self.root, pl_module, averaged_copies(trainer), self.averages.moved())
        if (factors := self.folds()) is not None:
            for name in [n for net in (self.root, *copies) for n in scale_readers_(net, self.units.taps, factors)]:
                self.monitor.warn_once(name, f"The gate on the {name} is dropped: it could not go into a weight.")
        silence_((self.root, *copies), self.silenced)
        if bool(selection.keep.all()):
            rule = f"the rule {self.rule!r} with delta={self.delta}"
            warn_all_stay(type(self).__name__, rule, selection.kept, self.if_all_stay)
            return False
        dense = deepcopy(self.root).cpu() if self.aim.batch and trainer.is_global_zero else None
        with shapes_may_change(trainer):
            self.pruned = remove_channels(
                self.root, self.example, selector, selection, form=self.surgery.get("form", "auto"),
                optimizers=trainer.optimizers, averaged=copies, means=self.means(),
            )  # fmt: skip
            self.selection = self.pruned.selection
            self.numbers = self.shares(self.selection)
            if self.after == "retrain":
                reinitialise(self.root, trainer.optimizers, self.seen, copies)
        announce_removal(trainer, pl_module, self.pruned.plan)
        if dense is not None:
            self.aim.tell(trainer, dense, self.root, self.example)
        tell_removed(type(self).__name__, self.numbers, branch_names(self.pruned.plan))
        return True

    def log_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.phases is not None
        numbers = {name: value for name, value in self.numbers.items() if not math.isnan(value)}
        own = self.metrics() if self.stage == "soft" else {}
        self.monitor.scalars(pl_module, "macs", {**own, **numbers, "phase": PHASES[self.phases.at(self.seen)]})

    def log_epoch(self, trainer: Trainer) -> None:
        self.monitor.late(self.left, trained_by(trainer.optimizers))
        if self.stage == "soft" and self.selection is not None:
            layers = zip(self.units.layers, self.units.by_layer(self.selection.score), strict=True)
            self.monitor.histograms(trainer, {f"prune/scores/{names[0]}": score for names, score in layers})

    def log_removal(self, trainer: Trainer, soft: float | None, hard: float | None) -> None:
        log_to_loggers(trainer, {f"prune/{k}": v for k, v in self.numbers.items() if not math.isnan(v)})
        advice = (
            "The scores did not tell yet which channels matter: give the sparsify phase more steps or a larger travel, "
            "or raise the target."
        )
        gap = self.max_gap if self.after == "finetune" else math.inf
        self.monitor.removal(trainer, soft, hard, gap, self.recalibrate_batches, advice)
