"""Soft filter pruning as a callback: filters are zeroed again and again, may grow back, and go at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_prune.callbacks.methods.channels.score import ScorePruningCallback
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.step import Step
from lightning_prune.channels.select.selection import Selection
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.least_squares import Form
from lightning_prune.scores import ScoreLike
from lightning_prune.scoring.scope import Scope


class SoftFilterPruningCallback(ScorePruningCallback):
    """Soft filter pruning (SFP, He et al., IJCAI 2018, arXiv 1808.06866).

    In the sparsify phase the filters of least L2 norm are set to zero at the start of each epoch (eight times at least
    in a short phase) and trained on: what grows back may stay. At its end those of least norm are removed. The paper
    takes the same share of each layer's filters and prunes from the first epoch on.

    Ours: in its first step a filter that is zero learns no faster than the fastest of its layer's others. A BatchNorm
    behind it divides its gradient by √ε, and what grew back would have the largest norm of all, whatever it is worth.

    Args:
        score: by name, as a `Score`, or as a function of the `ChannelUnits`; None: "l2", as in the paper.
        scope: among whom channels are ranked: "layer" the same share of each layer, "global" all, "isomorphic" the same
            share of layers of like structure, ranked together.
        score_batches: training batches on which a score of activations or gradients is measured, in eval mode.
        reconstruct: whether the layers that read removed channels are refitted after the removal: "weights", "scale".
        target_macs: share of the multiply-accumulates that may be left, in (0, 1); met within 1 %. Half of them
            if nothing else is given.
        target_params: the same for parameters.
        target_channels: the same for channels, of those that may be removed.
        target_latency: the same for the CPU latency, measured. Give one target.
        warmup: training before. An int counts epochs, a float is a share of the training, "300 steps" steps.
        sparsify: training with filters zeroed again and again, up to the removal; as ``warmup``.
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

    default = "l2"

    def __init__(
        self,
        score: ScoreLike | None = None,
        scope: Scope = "layer",
        score_batches: int = 20,
        reconstruct: Form | None = None,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_channels: float | None = None,
        target_latency: float | None = None,
        warmup: Duration = 0,
        sparsify: Duration = 0.7,
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
        super().__init__(**options_of(ScorePruningCallback, locals()))

    def start(self, units: ChannelUnits) -> None:
        super().start(units)
        self._filters = list(units.weights().values())

    def before_step(self, units: ChannelUnits, step: Step) -> None:
        for weight in self._filters:
            if weight.grad is not None and step.holds(weight):
                weight.grad.mul_(slowed(weight.detach(), weight.grad))

    @torch.no_grad()
    def selected(self, units: ChannelUnits, selection: Selection) -> None:
        """Zero the filters that would go now."""
        for name, weight in units.weights().items():
            groups = units.graph.axes[name][0]
            weight[(groups >= 0) & ~selection.keep[groups.clamp_min(0)]] = 0.0


def slowed(weight: Tensor, grad: Tensor) -> Tensor:
    """What the gradients of filters that are zero are multiplied by, so that none is larger than any other filter's.

    Args:
        weight, grad: [filters, ...].

    Returns:
        [filters, 1, ...], 1 for filters that are not zero, and where all are.
    """
    zero, size = ~weight.flatten(1).any(1), grad.flatten(1).norm(dim=1)
    limit = torch.where(zero.all(), size, size.masked_fill(zero, 0.0)).amax()
    factor = torch.where(zero, (limit / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max(1.0), 1.0)
    return factor.view(-1, *[1] * (weight.ndim - 1))
