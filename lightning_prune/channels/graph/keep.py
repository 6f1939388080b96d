"""What a choice of channel groups leaves of a vector of group ids."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_mask(ids: Tensor, keep: Tensor) -> Tensor:
    """The channels that stay, bool in the shape of `ids` (group ids; frozen ones are negative).

    Args:
        keep: bool of shape (groups,).
    """
    if len(keep) == 0:
        return torch.ones_like(ids, dtype=torch.bool)
    return (ids < 0) | keep[ids.clamp(min=0)]


def kept_count(ids: Tensor, keep: Tensor) -> int:
    """How many channels of a vector of group ids stay. keep: bool of shape (groups,)."""
    return int(kept_mask(ids, keep).sum())
