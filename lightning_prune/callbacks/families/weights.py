"""The family that zeroes weights: units are weights, the outcome is zeros at the shapes of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.families.constants import silence_constants, silenced
from lightning_prune.callbacks.families.target import WeightTarget
from lightning_prune.callbacks.families.zeros import ZeroKeeper, check_zeros, prune_everywhere, report_zeros
from lightning_prune.callbacks.lifecycle import PruningCallback
from lightning_prune.callbacks.logs import PHASES, by_reason
from lightning_prune.callbacks.method import PruningMethod
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.step import Step, trained_by
from lightning_prune.callbacks.trail import TrailWriter
from lightning_prune.callbacks.trainer import log_to_loggers, thaws_later
from lightning_prune.functional import budget
from lightning_prune.masks import Target, detach, find_targets
from lightning_prune.masks.shards import local, reshard, shards_of
from lightning_prune.masks.units import WeightUnits

_ASKED_FOR = ("excluded", "not in include", "first or last layer")


class WeightPruning(PruningCallback):
    """Base of the methods that zero weights. A subclass gives ``score(units) -> [weights]`` and what else it needs.

    Without gates the sparsify phase trains the dense network, and its end prunes in one shot. Names of gates are those
    of parameters.

    Args:
        target_sparsity: share of prunable weights that are zero after the prune, met to the weight; in [0, 1).
        target_compression: the same as prunable weights / non-zero ones, ≥ 1; give one of the targets.
        target_macs: share of the network's sparse MACs that may be left, in (0, 1), see `WeightTarget`.
        warmup: dense training first. An int counts epochs, a float is a share of the training, "300 steps" steps.
        sparsify: training under the masks, up to the hard prune; as ``warmup``.
        finetune: training after the prune; None takes what is left.
        include: fnmatch patterns on parameter or module names, whole or from any dot on; None takes every conv and
            linear weight.
        exclude: patterns of weights to leave dense.
        skip_first: leave the stem dense.
        skip_last: leave the classifier dense.
        min_keep: least share of each layer's weights to keep.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the prune; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this from the soft to the hard network.
        trail: kept shares, e.g. ``[0.5, 0.2, 0.1]``; an ordinary checkpoint is saved at the first validation after
            each is crossed.
        trail_dir: folder of the trail; default ``<log dir>/trail``.
        trail_metric: validation metric noted in the trail; default the first ``val*acc*`` or ``val*`` that is logged.
        histogram_every: log weight histograms every that many epochs to loggers that can (costs a second for 10 M
            weights); 0: never.

    Raises:
        ValueError: an argument out of its range.
    """

    units: WeightUnits

    def __init__(
        self,
        target_sparsity: float | None = None,
        target_compression: float | None = None,
        target_macs: float | None = None,
        warmup: Duration = 0,
        sparsify: Duration = 0.6,
        finetune: Duration | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        skip_first: bool = False,
        skip_last: bool = False,
        min_keep: float = 0.01,
        recalibrate_batches: int = 20,
        max_gap: float = 0.05,
        trail: Sequence[float] | None = None,
        trail_dir: str | None = None,
        trail_metric: str | None = None,
        histogram_every: int = 0,
    ) -> None:
        if not 0 <= min_keep < 1:
            raise ValueError(f"min_keep={min_keep} is a share of each layer, in [0, 1).")
        self.target = WeightTarget(target_sparsity, target_compression, target_macs)
        self.layers = {"include": include, "exclude": exclude, "skip_first": skip_first, "skip_last": skip_last}
        self.min_keep = min_keep
        self.trail = TrailWriter(trail, trail_dir, trail_metric) if trail else None
        super().__init__(warmup, sparsify, finetune, recalibrate_batches, max_gap, histogram_every)

    def reset(self) -> None:
        super().reset()
        self.units = WeightUnits((), ())
        self.left: dict[str, nn.Parameter] = {}  # what could be a target, and did not train when they were chosen
        self.target.costs = None
        self._chosen = False  # for good: what trains may change up to the sparsify phase
        self.zeros_at_prune: list[int] = []
        self._keeper = ZeroKeeper()
        self._silent: Sequence[nn.Parameter] | None = None  # scales that are held too; None: to be found
        if self.trail is not None:
            self.trail.load({"entries": []})

    @property
    def target_sparsity(self) -> float | None:
        """The share of weights that are to be zero, if that is the target."""
        return self.target.sparsity

    # ---- what a method may say further ------------------------------------------------------------------------------

    def final_masks(self, score: Tensor, early: bool) -> list[Tensor]:
        """What to keep at the hard prune, one bool tensor a layer: the highest scores that the target allows.

        Args:
            score: [weights].
            early: the phase was cut short; a method that prunes step by step may keep more.
        """
        return self.units.best(score, self.target.share(self.units))

    def layer_zeros(self) -> list[int]:
        """Zeros of each layer; in the sparsify phase those that the method would leave now."""
        return self.units.zeros()

    # ---- the family -------------------------------------------------------------------------------------------------

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        by_target = type(self).final_masks is WeightPruning.final_masks
        if self.prunes and by_target and not self.target.given:
            raise ValueError(
                f"{type(self).__name__} has neither target_sparsity nor target_compression nor target_macs, and "
                "nothing else says how many weights go: give one, such as target_sparsity=0.9."
            )
        self.root = pl_module
        trains = self.trained(trainer)
        later = thaws_later(trainer) and not any(trains(t.param) for t in self._candidates())
        self.choose((lambda p: True) if later else trains)  # what thaws is known when the phase begins

    def trained(self, trainer: Trainer) -> Callable[[Tensor], bool]:
        """Whether a weight trains now; targets are those that do."""
        return trained_by(trainer.optimizers)

    def choose(self, trains: Callable[[Tensor], bool], last: bool = False) -> None:
        """Take the layers that train now as targets; ``last``: for good, and what is left out is named."""
        reshard(self.root)
        candidates = self._candidates()
        targets, skipped = find_targets(self.root, **self.layers, trains=trains)  # type: ignore[arg-type]
        self._take(targets, candidates)
        self._chosen = last
        for line in by_reason((n, why) for n, why in skipped if why not in _ASKED_FOR and (last or n not in self.left)):
            self.monitor.warn_once(line, f"{type(self).__name__} leaves dense {line}.")

    def _candidates(self) -> list[Target]:
        return find_targets(self.root, **self.layers, trains=lambda p: True)[0]  # type: ignore[arg-type]

    def _take(self, targets: Sequence[Target], candidates: Sequence[Target]) -> None:
        numels = [t.numel for t in targets]
        shards = shards_of([t.param for t in targets], [t.name for t in targets])
        floors, prices = budget.floors(numels, self.min_keep), self.target.prices(targets)
        self.units = WeightUnits(tuple(targets), tuple(floors), shards, prices)
        chosen = set(self.units.names)
        self.left = {t.name: t.param for t in candidates if t.name not in chosen}
        self.target.check(self.units)

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self.root = pl_module
        if not self._chosen:
            self.target.count(trainer, pl_module, self._candidates(), batch, self.calibration_forward)
            self.choose(self.trained(trainer), last=True)

    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if self.target.macs is not None:
            candidates = self._candidates()
            self.target.count(trainer, pl_module, candidates, batch, self.calibration_forward)
            self._take(self.units.targets, candidates)
        if type(self).observe is not PruningMethod.observe:
            calibrate.rehearse(trainer, pl_module, [batch], self.calibration_forward)
        elif self.recalibrate_batches:
            self._calibrated(trainer, pl_module, [batch], calibrate.rehearse)

    def before_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Last layers first: their weights were the last that the optimizer wrote, the first ones are needed next.
        for target in reversed(self.units.targets if self._gates else ()):
            self._gates[target.name].renew(target.param)

    def hold(self, step: Step) -> None:
        self._silent = silenced(self.root) if self._silent is None else self._silent
        held = (*(t.param for t in self.units.targets), *self._silent)
        self._keeper.before(step.optimizer, [p for p in held if step.holds(p)])

    def held(self, step: Step) -> None:
        self._keeper.after(step.optimizer)

    def scored_by(self) -> Iterable[tuple[str, nn.Parameter]]:
        return ((t.name, t.param) for t in self.units.targets)

    def sites(self) -> Mapping[str, nn.Module]:
        return {t.name: t.module for t in self.units.targets}

    def remove(self, trainer: Trainer, pl_module: LightningModule, early: bool) -> bool:
        self._expire()
        score = self.scored(trainer, pl_module)
        detach(pl_module)
        for gate in self._gates.values():
            gate.forget()  # the masks take as much
        masks = self.final_masks(score, early)
        del score
        prune_everywhere(trainer, self.units.targets, masks, self.averages.moved(), self._gates, self.units.shards)
        self.zeros_at_prune = self.units.zeros()
        report_zeros(type(self).__name__, self.zeros_at_prune, self.units.numel, sum(self.units.count(masks)))
        return True

    def settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        silence_constants(trainer, pl_module, self.averages.moved())
        self._silent = None

    def release(self, pl_module: LightningModule) -> None:
        detach(pl_module)

    def watched(self) -> Sequence[nn.Parameter]:
        return [t.param for t in self.units.targets]

    def kept(self) -> Tensor:
        """Share of the weights that is kept now."""
        zeros = sum(self.zeros_at_prune) if self.stage == "pruned" else 0
        return torch.tensor(1 - zeros / self.units.numel, dtype=torch.float64)

    def log_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kept = self.kept()
        numbers: dict[str, Any] = {"kept": kept, "sparsity": 1 - kept}
        numbers["compression"] = 1 / kept.clamp_min(1 / self.units.numel)
        if self.prunes and self.phases is not None:
            own = self.metrics() if self.stage == "soft" else {}
            numbers = {**own, **numbers, "phase": PHASES[self.phases.at(self.seen)]}
        if self.target.costs is not None and self.stage != "dense":
            zeros = self.zeros_at_prune if self.stage == "pruned" else self.layer_zeros()
            numbers["sparse_macs"] = self.target.sparse_macs(self.units, zeros)
        self.monitor.scalars(pl_module, "sparsity", numbers)

    def log_epoch(self, trainer: Trainer) -> None:
        zeros = self.layer_zeros()
        targets = self.units.targets
        log_to_loggers(
            trainer,
            {f"prune/layer/{t.name}/sparsity": z / t.numel for t, z in zip(targets, zeros, strict=True)},
        )
        for target, count, floor in zip(targets, zeros, self.units.floors, strict=True):
            if target.numel - count <= floor < target.numel:
                self.monitor.warn_once(
                    f"empty {target.name}",
                    f"{target.name} is about to empty: {target.numel - count} of {target.numel} weights are left, its "
                    f"floor is {floor}. Raise min_keep, exclude it, or lower the target.",
                )
        self.monitor.histograms(trainer, {f"prune/weights/{t.name}": local(t.param) for t in targets})
        if self.prunes:
            self.monitor.late(self.left, self.trained(trainer))
        if self.stage == "pruned":
            check_zeros(targets, self.zeros_at_prune, zeros)

    def log_removal(self, trainer: Trainer, soft: float | None, hard: float | None) -> None:
        advice = "The network had not adapted: give the sparsify phase more steps, or lower the target."
        self.monitor.removal(trainer, soft, hard, self.max_gap, self.recalibrate_batches, advice)

    def after_evaluation(self, trainer: Trainer) -> None:
        if self.trail is not None and self.stage != "dense":
            kept = 1 - sum(self.layer_zeros()) / self.units.numel
            phase = "finetune" if self.stage == "pruned" else "sparsify"
            self.trail.visit(trainer, kept, self.units.numel, phase)

    def state(self) -> dict[str, Any]:
        trail = {} if self.trail is None else {"trail": self.trail.state()}
        return {"names": self.units.names, "left": list(self.left)} | trail | self.target.state()

    def restore(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        candidates = {t.name: t for t in self._candidates()}
        empty = {name for name, p in pl_module.named_parameters() if not p.numel()}  # channels were removed since
        names, known = list(state["names"]), {*state["names"], *state["left"]} - empty
        gone, new = sorted(known - candidates.keys()), sorted(candidates.keys() - known)
        if known and (gone or new):
            raise ValueError(
                f"The checkpoint's pruned layers are not this run's: it also has {gone[:5]}, this run also has "
                f"{new[:5]}. Resume with the same model, include, exclude, skip_first and skip_last."
            )
        self.target.restore(state)
        if state["stage"] != "dense":
            self._take([candidates[name] for name in names], list(candidates.values()))
            self._chosen = True
        if self.trail is not None and "trail" in state:
            self.trail.load(state["trail"])
        if state["stage"] == "pruned":
            self.zeros_at_prune = self.units.zeros()
