"""The family that lowers ranks: units are rank-one components of weights, the outcome is layers that become two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_prune.callbacks.families.shapes import ShapePruning
from lightning_prune.callbacks.logs import PHASES, by_reason
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.step import may_train, trained_by
from lightning_prune.callbacks.trainer import announce_removal, averaged_copies, log_to_loggers, shapes_may_change
from lightning_prune.factors.units import FactorUnits, find_layers
from lightning_prune.functional.budget import one_share
from lightning_prune.functional.low_rank import gated
from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.masks import detach
from lightning_prune.support.averages import copies_of
from lightning_prune.support.network import find_network

_ASKED_FOR = ("excluded", "not in include", "first or last layer")


class FactorPruning(ShapePruning):
    """Base of the methods that make two layers of lower rank of one. A subclass gives ``score(units) -> [components]``.

    Up to the removal the network and its checkpoints are the dense ones. Then a weight is what its kept components
    make of it, and where two layers are smaller than one, `PruningPlan.apply` makes two of it, in mid-fit.

    Args:
        target_params: share of the network's parameters that may be left, in (0, 1); met to less than the weights that
            one component takes. 0.5 if not given.
        warmup: training before the sparsify phase. An int counts epochs, a float is a share, "300 steps" steps.
        sparsify: training up to the removal at the start of the next batch; as ``warmup``.
        finetune: training after the removal; None takes what is left.
        network: name of the child of the LightningModule to prune; None: the innermost that holds all parameters.
        include: fnmatch patterns on parameter or module names, whole or from any dot on; None takes every linear layer
            and ungrouped convolution.
        exclude: patterns of layers to leave dense.
        skip_first: leave the stem dense.
        skip_last: leave the classifier dense.
        min_keep: least share of each layer's components to keep.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the removal; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this at the removal.
        histogram_every: log histograms of the scores every that many epochs; 0: never.

    Raises:
        ValueError: an argument out of its range.
    """

    units: FactorUnits

    def __init__(
        self,
        target_params: float | None = None,
        warmup: Duration = 0.1,
        sparsify: Duration = 0.5,
        finetune: Duration | None = None,
        network: str | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        skip_first: bool = False,
        skip_last: bool = False,
        min_keep: float = 0.01,
        recalibrate_batches: int = 20,
        max_gap: float = 0.05,
        histogram_every: int = 0,
    ) -> None:
        if not 0 <= min_keep < 1:
            raise ValueError(f"min_keep={min_keep} is a share of each layer's components, in [0, 1).")
        given = one_share({"params": target_params})
        self.target_params = 0.5 if given is None else given[1]
        self.min_keep = min_keep
        self.layers = {"include": include, "exclude": exclude, "skip_first": skip_first, "skip_last": skip_last}
        super().__init__(network, warmup, sparsify, finetune, recalibrate_batches, max_gap, histogram_every)

    def reset(self) -> None:
        super().reset()
        self.units = FactorUnits((), (), (), (), 0)
        self.left: dict[str, Tensor] = {}  # weights that did not train when the phase began
        self._begun: dict[str, Any] = {}  # what holds from there on: the path of the network, and the layers' names
        self.numbers: dict[str, float] = {"params": 1.0}

    # ---- what a method may say further ------------------------------------------------------------------------------

    def scales(self, units: FactorUnits) -> list[Tensor]:
        """What each component is multiplied by if it stays, [components] a layer: soft gates, folded at the removal."""
        return [torch.ones_like(b.values) for b in units.bases]

    # ---- the family -------------------------------------------------------------------------------------------------

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().prepare(trainer, pl_module)
        if self._loaded is not None and self._loaded["stage"] == "pruned":
            return  # the removal is behind a run that is resumed
        targets, _ = find_layers(self.root, **self.layers, trains=lambda p: True)  # type: ignore[arg-type]
        may = may_train(trainer)
        targets = [t for t in targets if may(t.param)] or targets
        FactorUnits.check(self.root, targets, self.min_keep, self.target_params)

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        name = self._begun.get("network", self.network_name)
        self.root = network = find_network(pl_module, name, self.averages.parameters())
        trains = trained_by(trainer.optimizers)
        targets, skipped = find_layers(network, **self.layers, trains=lambda p: True)  # type: ignore[arg-type]
        names = self._begun.get("names", [t.name for t in targets if trains(t.param)])
        if not names:
            raise ValueError(
                f"{type(self).__name__} finds no layer that trains among {', '.join(t.name for t in targets[:5])}: "
                "begin the sparsify phase when there is one, with a longer warmup."
            )
        if gone := sorted(set(names) - {t.name for t in targets}):
            raise ValueError(
                f"The checkpoint's factorised layers are not this run's: it also has {gone[:5]}. Resume with the same "
                "model, include, exclude, skip_first and skip_last."
            )
        self.left = {t.name: t.param for t in targets if t.name not in names}
        skipped += [(name, "does not train") for name in self.left]  # type: ignore[misc]
        for line in by_reason((n, why) for n, why in skipped if why not in _ASKED_FOR):
            self.monitor.warn_once(line, f"{type(self).__name__} leaves dense {line}.")
        self._begun = {"network": next(n for n, m in pl_module.named_modules() if m is network), "names": list(names)}
        self._measure(trainer, [t for t in targets if t.name in set(names)])

    def _measure(self, trainer: Trainer, targets: Sequence[Any]) -> None:
        """Take the components of the weights as they are now, those of the first rank on all."""
        units = FactorUnits.of(self.root, targets, self.min_keep)
        for basis in units.bases if trainer.world_size > 1 else ():
            for tensor in basis:
                tensor.copy_(trainer.strategy.broadcast(tensor.cpu()))
        self.units = units

    def sites(self) -> Mapping[str, nn.Module]:
        return {t.name: t.module for t in self.units.targets}

    def remove(self, trainer: Trainer, pl_module: LightningModule, early: bool) -> bool:
        detach(pl_module)
        if not self._gates:
            self._measure(trainer, self.units.targets)
        units = self.units
        score = trainer.strategy.broadcast(self.scored(trainer, pl_module).detach().double().cpu())
        kept = units.select(score, self.target_params)
        plan = units.plan(kept)  # of one layer at least: all of them whole would be more than the budget
        copies = copies_of(self.root, pl_module, averaged_copies(trainer), self.averages.moved())
        scales = [z * mask.to(z) for z, mask in zip(self.scales(units), kept, strict=True)]
        for network in (self.root, *copies):
            parameters = dict(network.named_parameters(remove_duplicate=False))
            for target, basis, z in zip(units.targets, units.bases, scales, strict=True):
                if bool((z != 1).any()):
                    w = at_least_float32(parameters[target.name].detach())
                    folded = gated(w.flatten(1), basis.vectors.to(w), z.to(w))
                    parameters[target.name].copy_(folded.view_as(w))
        with shapes_may_change(trainer):
            plan.apply(self.root, optimizers=trainer.optimizers, averaged=copies)
        announce_removal(trainer, pl_module, plan)
        left = sum(p.numel() for p in self.root.parameters())
        self.numbers = {"params": left / units.parameters}
        rank_zero_info(
            f"{type(self).__name__}: {len(plan.factors)} of {len(units.targets)} layers are two of lower rank now; "
            f"{self.numbers['params']:.1%} of the parameters are left."
        )
        return True

    def watched(self) -> Sequence[nn.Parameter]:
        if self.stage == "dense":  # which layers there are is known when the phase begins
            return [*self.root.parameters()]
        return [t.param for t in self.units.targets]

    def log_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.phases is not None
        own = self.metrics() if self.stage == "soft" else {}
        self.monitor.scalars(pl_module, "params", {**own, **self.numbers, "phase": PHASES[self.phases.at(self.seen)]})

    def log_epoch(self, trainer: Trainer) -> None:
        self.monitor.late(self.left, trained_by(trainer.optimizers))
        if self.stage == "soft":
            scores = zip(self.units.names, self.units.split(self.score(self.units)), strict=True)
            self.monitor.histograms(trainer, {f"prune/scores/{name}": score for name, score in scores})

    def log_removal(self, trainer: Trainer, soft: float | None, hard: float | None) -> None:
        log_to_loggers(trainer, {f"prune/{k}": v for k, v in self.numbers.items()})
        advice = (
            "The scores did not tell yet which components matter: give the sparsify phase more steps, or raise the "
            "target."
        )
        self.monitor.removal(trainer, soft, hard, self.max_gap, self.recalibrate_batches, advice)

    def state(self) -> dict[str, Any]:
        return {"numbers": dict(self.numbers)} | (self._begun if self.stage == "soft" else {})

    def restore(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        self.numbers = dict(state["numbers"])
        self._begun = {name: state[name] for name in ("network", "names") if name in state}
