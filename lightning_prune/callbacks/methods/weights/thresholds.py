"""Weight pruning by one threshold a layer on w²: masks in training, sums over each layer, the last common factor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_prune.callbacks.families.weights import WeightPruning
from lightning_prune.callbacks.step import Step
from lightning_prune.callbacks.trainer import log_to_loggers
from lightning_prune.functional import budget
from lightning_prune.masks import MaskGate, Target
from lightning_prune.masks.ltp import HARD_KEPT, IN_BAND, KEPT, STATS, TASK
from lightning_prune.masks.rows import limit_rows_
from lightning_prune.masks.shards import local
from lightning_prune.masks.units import WeightUnits
from lightning_prune.support.batchnorm import QuickStatistics

_NEARLY_EMPTY = 4.0  # times its floor that a layer keeps when its threshold begins to be watched


def share_of_gradient(feedback: float | None, default: float) -> float:
    """The share ρ of their gradient that pruned weights get while sparsifying, in ``g·(m + ρ(1 − m))``.

    Raises:
        ValueError: it is not in [0, 1].
    """
    if feedback is not None and not 0 <= feedback <= 1:
        raise ValueError(
            f"feedback={feedback} must be in [0, 1]: 0 freezes weights below their threshold, 1 trains them too."
        )
    return default if feedback is None else float(feedback)


class ThresholdPruning(WeightPruning):
    """Base of the methods with a threshold a layer. A subclass gives gates, ``thresholds`` and ``learn``.

    Attributes:
        stats: the last sums of each layer, [layers, sums]; float64 on the CPU.
        sums: how many a gate's step gives: those named by `STATS`, and what a method adds.
        final_thresholds: those of the hard prune; None before it.
        feedback: ρ, the share of their gradient that pruned weights get.
        form: what the gates make of weights that they keep, of `functional.shrink.FORMS`; "step": nothing.
    """

    feedback = 0.0
    form = "step"
    sums = len(STATS)

    def reset(self) -> None:
        super().reset()
        self._quick = QuickStatistics()  # weights that shrink, shrink what their layers put out
        self.stats = torch.zeros(0, self.sums)
        self.final_thresholds: Tensor | None = None

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().begin(trainer, pl_module, batch)
        if self.form != "step":
            self._quick.begin(pl_module)

    def remove(self, trainer: Trainer, pl_module: LightningModule, early: bool) -> bool:
        removed = super().remove(trainer, pl_module, early)
        self._quick.end()
        return removed

    def release(self, pl_module: LightningModule) -> None:
        super().release(pl_module)
        self._quick.end(undo=True)  # nothing was removed: the weights are whole again

    def thresholds(self) -> Tensor:
        """The thresholds on ``w²``, [layers], ≥ 0."""
        raise NotImplementedError

    def learn(self, stats: Tensor, active: Tensor) -> None:
        """Move the thresholds, once per optimizer step.

        Args:
            stats: float64 [layers, sums], the sums over each layer as of its last step.
            active: bool [layers], those that got a finite gradient in this step.
        """
        raise NotImplementedError

    def start(self, units: WeightUnits) -> None:
        device = units.targets[0].param.device
        wide = torch.float64 if device.type == "cpu" else torch.float32
        self.stats = torch.zeros(len(units.targets), self.sums, dtype=wide, device=device)
        self.stats[:, KEPT] = torch.tensor([float(t.numel) for t in units.targets])

    def tensors(self) -> dict[str, Tensor]:
        return {"stats": self.stats}

    def before_step(self, units: WeightUnits, step: Step) -> None:
        ready = [t.param.grad is not None and step.holds(t.param) for t in units.targets]
        stepped = [i for i, is_ready in enumerate(ready) if is_ready]
        sums = []
        for target in (units.targets[i] for i in stepped):
            assert target.param.grad is not None
            sums.append(self._gate(target).step_(local(target.param), local(target.param.grad), step.logged))
        self._limit([units.targets[i] for i in stepped])
        total = units.shards.total(torch.stack(sums)) if sums else self.stats[:0]
        if all(ready):
            self.stats.copy_(total)
        else:
            for i, of_layer in zip(stepped, total, strict=True):
                self.stats[i] = of_layer
        self._expire()  # what follows looks at weights, not at the masked ones that stand in shards
        # A loss-scaling overflow gives non-finite sums; the scaler skips the weights' step, and so do the thresholds.
        finite = torch.isfinite(self.stats[:, TASK])
        active = finite & finite.all()
        if not all(ready):  # else nothing is sent to the device
            active &= torch.tensor(ready, device=self.stats.device)
        self.learn(self.stats, active)

    def _limit(self, targets: Sequence[Target]) -> None:
        """Where pruned weights train too, no row's gradient may be far larger than those of its layer unmasked."""
        fed = [(self._gate(t), t.param) for t in targets if self.feedback]
        grads = [local(param.grad) for _, param in fed if param.grad is not None]
        pairs = [gate.pair(local(param)) for gate, param in fed]
        limit_rows_(grads, [w for w, _ in pairs], [v for _, v in pairs], self.units.shards, [len(p) for _, p in fed])

    def _gate(self, target: Target) -> MaskGate:
        gate = self._gates[target.name]
        assert isinstance(gate, MaskGate)
        return gate

    def highest_thresholds(self) -> Tensor:
        """What ``thresholds`` may not exceed, [layers]: of nearly empty layers what leaves their floor, else inf."""
        highest = torch.full((len(self.stats),), torch.inf, device=self.stats.device)
        floors, kept, weights = self.units.floors, self.stats[:, KEPT].tolist(), self.units.weights()
        near = [i for i, n in enumerate(floors) if kept[i] < _NEARLY_EMPTY * n]
        if near:
            highest[near] = budget.largest_thresholds(
                [weights[i] for i in near], [floors[i] for i in near], self.units.shards
            )
        return highest

    def score(self, units: WeightUnits) -> Tensor:
        """``w²/τ``: the budget's cut through it is one common factor on all thresholds."""
        tiny = torch.finfo(torch.float32).tiny
        taus = self.thresholds().float().clamp_min(tiny)
        return units.join([w.square() / tau for w, tau in zip(units.weights(), taus, strict=True)])

    def final_masks(self, score: Tensor, early: bool) -> list[Tensor]:
        self.final_thresholds = self.thresholds().clone()
        if self.target.given and not early:
            return super().final_masks(score, early)
        weights: Sequence[Tensor] = self.units.weights()
        by_threshold = [w.square() > tau for w, tau in zip(weights, self.thresholds(), strict=True)]
        return budget.at_least(by_threshold, weights, self.units.floors, self.units.shards)

    def layer_zeros(self) -> list[int]:
        if self.stage != "soft":
            return super().layer_zeros()
        pairs = zip(self.units.weights(), self.thresholds(), strict=True)
        return self.units.count([w.square() <= tau for w, tau in pairs])

    def kept(self) -> Tensor:
        if self.stage != "soft":
            return super().kept()
        stats = self.stats
        counted = torch.where(stats[:, HARD_KEPT].isnan(), stats[:, KEPT], stats[:, HARD_KEPT])
        return counted.sum() / self.units.numel

    def metrics(self) -> dict[str, Tensor | float]:
        numel = self.units.numel
        return {"soft_kept": self.stats[:, KEPT].sum() / numel, "band": self.stats[:, IN_BAND].nansum() / numel}

    def log_epoch(self, trainer: Trainer) -> None:
        super().log_epoch(trainer)
        if self.stage == "soft":
            taus = zip(self.units.names, self.thresholds().tolist(), strict=True)
            log_to_loggers(trainer, {f"prune/layer/{name}/tau": tau for name, tau in taus})

    def state(self) -> dict[str, Any]:
        own = {"thresholds": self.thresholds().clone(), "form": self.form} if self.stage == "soft" else {}
        return super().state() | own
