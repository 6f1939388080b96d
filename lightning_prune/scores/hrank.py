"""HRank: the rank of feature maps (Lin et al., CVPR 2020, arXiv 2002.10179)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.scoring.base import Score, register


def map_rank(x: Tensor) -> Tensor:
    """The mean rank of each channel's feature maps.

    Args:
        x: feature maps, [N, C, H, W].

    Returns:
        float64 [C], from 0 to min(H, W).
    """
    ranks: Tensor = torch.linalg.matrix_rank(at_least_float32(x))
    return ranks.double().mean(0)


@register("hrank")
class HRank(Score):
    """Mean rank of the feature maps that the next layers read, as a share of the largest that their size allows.

    The paper ranks within a layer, whose share is chosen by hand; the share of min(H, W) is our reading for one order
    over all layers. Channels without two spatial dims (tokens, pooled features) have no rank and stay.

    Args:
        samples: of each batch, at most; the paper takes 500 images in all.
    """

    needs, by = "activations", None

    def __init__(self, samples: int = 25) -> None:
        if samples < 1:
            raise ValueError(f"samples={samples} must be positive.")
        self.samples = samples

    def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor | None:
        if x.ndim != 4 or min(x.shape[2:]) < 2:
            return None
        return map_rank(x[: self.samples]) / min(x.shape[2:])
