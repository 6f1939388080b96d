"""Norms of filters (Li et al., ICLR 2017, arXiv 1608.08710, for p = 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.scores import filters_of


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
