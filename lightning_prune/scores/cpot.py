"""Channel pruning via optimal transport (Shen, Shen, Huang, Wang, Liu, Zheng, 2020, arXiv 2005.10451)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.scoring.base import Score, register


def quantile_functions(x: Tensor, points: int) -> Tensor:
    """The quantile function of each channel's values over samples and positions, at even points.

    Args:
        x: activation, [N, C, ...].
        points: how many.

    Returns:
        float64 [C, points].
    """
    values = at_least_float32(x).transpose(0, 1).flatten(1).double().sort(dim=1).values
    at = (torch.arange(points, dtype=torch.float64, device=x.device) + 0.5) / points * values.shape[1]
    return values[:, at.long()]


def distance_to_barycenter(quantiles: Tensor) -> Tensor:
    """The Wasserstein-2 distance of distributions on a line to their barycenter: [C].

    On a line the barycenter's quantile function is the mean of theirs, and the distance is that of the functions.

    Args:
        quantiles: quantile functions at even points, [C, points].
    """
    return (quantiles - quantiles.mean(0)).square().mean(1).sqrt()


@register("cpot")
class CPOT(Score):
    """Distance of a channel's distribution of activations to the barycenter of its layer; what is near is redundant.

    The paper was open to us in its abstract alone: that the distributions are those of single values, over samples and
    positions of what the next layers read, is our reading. Layers are compared by their mean distance.

    Args:
        points: of each quantile function.
    """

    needs = "activations"

    def __init__(self, points: int = 64) -> None:
        if points < 1:
            raise ValueError(f"points={points} must be a positive number, such as 64.")
        self.points = points

    def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor:
        return distance_to_barycenter(quantile_functions(x, self.points))
