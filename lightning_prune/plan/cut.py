"""What a plan says of one tensor and of one attribute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cut:
    """What is left of one tensor.

    Attributes:
        shape: the tensor's shape before.
        kept: {dim: kept indices, increasing}; dims of which everything stays are absent.
    """

    shape: tuple[int, ...]
    kept: dict[int, tuple[int, ...]]

    @property
    def new_shape(self) -> tuple[int, ...]:
        """The tensor's shape after."""
        return tuple(len(self.kept[d]) if d in self.kept else size for d, size in enumerate(self.shape))


@dataclass(frozen=True)
class Change:
    """An attribute of a module that counts channels: its value before and after (ints, or sequences of ints)."""

    before: Any
    after: Any
