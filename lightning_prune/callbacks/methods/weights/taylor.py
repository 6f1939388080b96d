"""Gradual weight pruning by what the loss would lose: the first-order Taylor score, along a cubic path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.callbacks.families.weights import WeightPruning
from lightning_prune.callbacks.methods.weights.thresholds import share_of_gradient
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.step import Step
from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.functional.schedules import cubic_path
from lightning_prune.masks import FixedGate, Gate
from lightning_prune.masks.units import WeightUnits

_UPDATES = 50  # times in the phase that the mask is renewed; between them the network heals
_MEMORY = 50  # optimizer steps that the score remembers


class TaylorWeightCallback(WeightPruning):
    """Global pruning by the first-order Taylor score ``|w·g|`` (Molchanov et al. 2019, on single weights).

    The score is a running mean over optimizer steps, of each step's gradient ``g = dL/dv`` in the weight that the
    network uses (accumulated and reduced as the optimizer sees it, before clipping). The mask keeps the highest of all
    layers, along a cubic path.

    Ours: ``|w·g|`` where the paper squares it and sums over filters; the running mean, of all steps at first and then
    of about the last 50; the path.

    Args:
        target_sparsity: share of weights to prune; 0.9 if no target is given.
        feedback: share of their gradient that pruned weights get in the sparsify phase, in [0, 1]. With 0 they stay
            pruned; else they train, and come back when their score is high again.
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
        trail: kept shares at which an ordinary checkpoint is saved, e.g. ``[0.5, 0.2, 0.1]``.
        trail_dir: folder of the trail; default ``<log dir>/trail``.
        trail_metric: validation metric noted in the trail; default the first ``val*acc*`` or ``val*`` that is logged.
        histogram_every: epochs between weight histograms, for loggers that take them; 0: never.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        target_sparsity: float | None = None,
        feedback: float = 0.0,
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
        if (target_sparsity, target_compression, target_macs) == (None, None, None):
            target_sparsity = 0.9
        super().__init__(**options_of(WeightPruning, locals()))
        self.feedback = share_of_gradient(feedback, 0.0)

    def start(self, units: WeightUnits) -> None:
        self._mean = torch.zeros_like(units.values())
        self._mask = torch.ones_like(self._mean, dtype=torch.bool)
        self._counts = torch.zeros(len(units.targets), dtype=self._mean.dtype, device=self._mean.device)
        self._steps = torch.zeros((), dtype=torch.int64)

    def gates(self, units: WeightUnits) -> dict[str, Gate]:
        self._own = [FixedGate(mask, self.feedback) for mask in units.split(self._mask)]
        return dict(zip(units.names, self._own, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self._mean, "mask": self._mask, "counts": self._counts, "steps": self._steps}

    def before_step(self, units: WeightUnits, step: Step) -> None:
        for i, (target, mean, gate) in enumerate(zip(units.targets, units.split(self._mean), self._own, strict=True)):
            grad = target.param.grad
            if grad is not None and step.holds(target.param):
                score = (at_least_float32(target.param.detach()) * at_least_float32(grad)).abs()
                usable = score.isfinite().all()  # a loss-scaling overflow skips the weights' step, and the score's
                self._counts[i] += usable
                rate = usable / self._counts[i].clamp(1, _MEMORY)
                mean.lerp_(torch.where(usable, score, mean), rate)
                gate.step_(target.param, grad, step.logged)
        self._steps += 1
        if int(self._steps) % max(1, self.sparsify_steps // _UPDATES) == 0:
            share = cubic_path(self.progress, self.target.share(units))
            self._mask.copy_(units.join(units.best(self.score(units), share)))

    def score(self, units: WeightUnits) -> Tensor:
        return self._mean if self.feedback else self._mean.masked_fill(~self._mask, -1.0)

    def final_masks(self, score: Tensor, early: bool) -> list[Tensor]:
        return self.units.split(self._mask.clone()) if early else super().final_masks(score, early)

    def layer_zeros(self) -> list[int]:
        if self.stage != "soft":
            return super().layer_zeros()
        return [int((~mask).sum()) for mask in self.units.split(self._mask)]

    def kept(self) -> Tensor:
        return self._mask.double().mean() if self.stage == "soft" else super().kept()
