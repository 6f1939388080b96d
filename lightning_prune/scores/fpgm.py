"""FPGM: filter pruning via the geometric median (He et al., CVPR 2019, arXiv 1811.00250)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.scores.norm import filters_of
from lightning_prune.scoring.base import Score, register


def fpgm(weight: Tensor) -> Tensor:
    """How far each filter is from all others of its layer: the others can replace a filter near their geometric median.

    The sum of Euclidean distances to the other filters, the paper's eq. 6: the filter of least sum is the one nearest
    to the geometric median. It does not depend on the filter's own norm, so compare it within a layer, or divide it by
    the layer's mean first.

    Args:
        weight: filters along dim 0, [C, ...].

    Returns:
        [C], ≥ 0, float32 or wider; zeros for a single filter.

    Raises:
        ValueError: ``weight`` has fewer than 2 dims.
    """
    filters = filters_of(weight)
    # By matrix products, distances of near equal filters would be rounding errors.
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


@register("fpgm")
class FPGM(Score):
    """Distance to the other filters of the layer, as a share of its layer's mean, so that one order serves all layers.

    The paper prunes every layer by the same share.
    """

    def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor:
        return fpgm(x)
