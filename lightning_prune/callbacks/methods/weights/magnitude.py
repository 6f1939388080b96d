"""Magnitude pruning as a callback: one threshold on |w| for the whole network, the rival in LTP's own table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_prune.callbacks.methods.weights.thresholds import ThresholdPruning, share_of_gradient
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.functional import budget
from lightning_prune.functional.order.kth import keys, kth_keys, values_of
from lightning_prune.functional.schedules import cubic_path
from lightning_prune.masks import Gate, HardGate
from lightning_prune.masks.units import WeightUnits


class MagnitudeCallback(ThresholdPruning):
    """Global magnitude pruning: gradual with a cubic schedule (Zhu & Gupta, arXiv 1710.01878), or in one shot.

    Args:
        target_sparsity: share of weights to prune; 0.9 if no target is given.
        schedule: "cubic" prunes along the sparsify phase; "oneshot" trains dense through it and prunes at its end.
        feedback: share of their gradient that pruned weights get in the sparsify phase, in [0, 1]: 0 freezes them, 1 is
            dynamic pruning with feedback (Lin et al. 2020, arXiv 2006.07253).
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

    Attributes:
        updates: times in the phase that the threshold is moved at most; between them the network heals.
    """

    updates = 50
    in_shards = True

    def __init__(
        self,
        target_sparsity: float | None = None,
        schedule: Literal["cubic", "oneshot"] = "cubic",
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
        if schedule not in ("cubic", "oneshot"):
            raise ValueError(f"schedule={schedule!r} must be 'cubic' or 'oneshot'.")
        super().__init__(**options_of(ThresholdPruning, locals()))
        self.schedule, self.feedback = schedule, share_of_gradient(feedback, 0.0)

    def start(self, units: WeightUnits) -> None:
        super().start(units)
        self._tau = torch.zeros(len(units.targets), device=self.stats.device)
        self._steps = torch.zeros((), dtype=torch.int64)

    def gates(self, units: WeightUnits) -> dict[str, Gate]:
        return {name: HardGate(tau, self.feedback) for name, tau in zip(units.names, self._tau.unbind(), strict=True)}

    def thresholds(self) -> Tensor:
        return self._tau

    def score(self, units: WeightUnits) -> Tensor:
        return units.values().square()

    def final_masks(self, score: Tensor, early: bool) -> list[Tensor]:
        return super().final_masks(score, early and self.schedule == "cubic")  # one shot has no way to be half of

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"tau": self._tau, "steps": self._steps}

    def learn(self, stats: Tensor, active: Tensor) -> None:
        self._steps += 1
        every = max(1, self.sparsify_steps // self.updates)
        if self.schedule == "oneshot" or int(self._steps) % every:
            return
        units = self.units
        keep = units.allowed(cubic_path(self.progress, self.target.share(units)))
        weights = units.weights()
        caps = budget.largest_thresholds(weights, units.floors, units.shards)
        cut = caps.new_zeros(1)
        if keep < units.cost:
            first = keep if units.prices else keep + 1  # the last weight that does not fit goes
            cut = values_of(kth_keys([keys(w.square()) for w in weights], [first], units.shards, units.prices))
        self._tau.copy_(torch.minimum(cut.expand_as(caps), caps))
