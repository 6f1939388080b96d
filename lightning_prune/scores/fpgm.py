"""Temporary."""

import torch
from torch import Tensor


def fpgm(weight: Tensor) -> Tensor:
    """Sum of distances."""
    flat = weight.detach().flatten(1).double()
    return torch.cdist(flat, flat).sum(1)
