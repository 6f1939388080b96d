"""Norms of filters (Li et al., ICLR 2017, arXiv 1608.08710, for p = 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.scoring.base import Score, register


def filters_of(weight: Tensor) -> Tensor:
    """A weight's filters as rows, [C, elements], float32 or wider, detached; ValueError without 2 dims."""
    if weight.ndim < 2:
        raise ValueError(f"weight of shape {tuple(weight.shape)} holds no filters: expected [C, ...].")
    return at_least_float32(weight.detach().flatten(1))


def filter_norm(weight: Tensor, p: float = 2) -> Tensor:
    """The p-norm of each filter.

    Args:
        weight: filters along dim 0, [C, ...].
        p: 1 for the sum of absolute values, 2 for the Euclidean norm, any other > 0.

    Returns:
        [C], ≥ 0, float32 or wider.

    Raises:
        ValueError: ``weight`` has fewer than 2 dims, or ``p`` is not positive.
    """
    if not p > 0:
        raise ValueError(f"p={p} must be positive, such as 1 or 2.")
    norms: Tensor = torch.linalg.vector_norm(filters_of(weight), p, dim=1)
    return norms


@register("l1", p=1)
@register("l2", p=2)
class FilterNorm(Score):
    """The p-norm of filters, as a share of its layer's mean.

    The paper ranks within a layer, whose share is chosen by hand; our reading for one order over all layers is the
    mean, as for FPGM.

    Args:
        p: of the norm.
    """

    def __init__(self, p: float = 2) -> None:
        self.p = p

    def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor:
        return filter_norm(x, self.p)
