"""Many vectors of group ids at once: which of their channels stay, and how many."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Vectors:
    """Vectors of group ids, looked at with one selection after another: a network has hundreds.

    Args:
        vectors: int64 [channels] each, negative for a channel that stays.
    """

    def __init__(self, vectors: Iterable[Tensor]) -> None:
        self.each = [*vectors]
        self._flat = torch.cat([torch.empty(0, dtype=torch.int64), *self.each])
        self._sizes = [len(ids) for ids in self.each]
        self._ends = torch.tensor([0, *self._sizes]).cumsum(0)

    def masks(self, keep: Tensor) -> tuple[Tensor, ...]:
        """The channels of each that stay, bool; keep: bool of shape (groups,)."""
        found: tuple[Tensor, ...] = kept_mask(self._flat, keep).split(self._sizes)
        return found

    def counts(self, keep: Tensor) -> list[int]:
        """How many channels of each stay; keep: bool of shape (groups,)."""
        total = torch.zeros(len(self._flat) + 1, dtype=torch.int64)
        torch.cumsum(kept_mask(self._flat, keep), 0, out=total[1:])
        counts: list[int] = total[self._ends].diff().tolist()
        return counts


def kept_mask(ids: Tensor, keep: Tensor) -> Tensor:
    """The channels that stay, bool in the shape of `ids` (group ids); keep: bool of shape (groups,)."""
    return (ids < 0) | keep[ids.clamp(min=0)] if len(keep) else torch.ones_like(ids, dtype=torch.bool)


def kept_count(ids: Tensor, keep: Tensor) -> int:
    """How many channels of a vector of group ids stay; keep: bool of shape (groups,)."""
    return int(kept_mask(ids, keep).sum())
