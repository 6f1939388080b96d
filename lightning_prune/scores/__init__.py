"""Importance scores of channels: pure functions of weights, higher is kept."""

from torch import Tensor

from lightning_prune.functional.ltp import at_least_float32


def filters_of(weight: Tensor) -> Tensor:
    """A weight's filters as rows, [C, elements], float32 or wider, detached; ValueError without 2 dims."""
    if weight.ndim < 2:
        raise ValueError(f"weight of shape {tuple(weight.shape)} holds no filters: expected [C, ...].")
    return at_least_float32(weight.detach().flatten(1))
