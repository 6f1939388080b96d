"""Filter pruning via geometric median as a callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lightning_prune.callbacks.channels import ChannelPruning
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scores.fpgm import fpgm


class FPGMCallback(ChannelPruning):
    """Filter pruning via geometric median (He et al., CVPR 2019, arXiv 1811.00250) on any network, with any norm.

    Filters nearest to the geometric median of their layer, those that the others can replace, are removed at once.
    Scores are divided by their layer's mean, so that one order serves all layers (the paper prunes every layer by the
    same share).

    Args:
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
        histogram_every: epochs between histograms of the scores; 0: never.
        surgery: further arguments of `prune_channels`: form, groups, attention, allow_inexact.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
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
        histogram_every: int = 0,
        surgery: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(**options_of(ChannelPruning, locals()))

    def score(self, units: ChannelUnits) -> Tensor:
        return units.normalize(units.aggregate({name: fpgm(w) for name, w in units.weights().items()}))
