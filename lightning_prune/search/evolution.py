"""Plain searches in a cube: by chance, and by a small evolution."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.search.ddpg import truncated_normal


class Chance:
    """Draws every action uniformly; learns nothing.

    Args:
        size: number of actions.
        generator: what is drawn from.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator

    def propose(self) -> Tensor:
        """Actions to try, float64 [size], in [0, 1]."""
        return torch.rand(self.size, generator=self.generator, dtype=torch.float64)

    def learn(self, actions: Tensor, value: float) -> None:
        """Take note of what actions are worth."""


class Evolution(Chance):
    """Keeps the best candidates; each new one takes every action from one of two of them, and changes some of them.

    Args:
        size: number of actions.
        generator: what is drawn from.
        parents: how many are kept.
        change: share of the actions that change.
        sigma: by how much, the deviation of a truncated normal distribution.
    """

    def __init__(
        self, size: int, generator: torch.Generator, parents: int = 8, change: float = 0.5, sigma: float = 0.2
    ) -> None:
        super().__init__(size, generator)
        self.parents, self.change, self.sigma = parents, change, sigma
        self.best: list[tuple[float, Tensor]] = []  # the highest first

    def propose(self) -> Tensor:
        if not self.best:
            return super().propose()
        first, second = (self.best[int(torch.randint(len(self.best), (), generator=self.generator))][1] for _ in "ab")
        mixed = torch.where(super().propose() < 0.5, first, second)
        noisy = truncated_normal(mixed, self.sigma, super().propose())
        return torch.where(super().propose() < self.change, noisy, mixed)

    def learn(self, actions: Tensor, value: float) -> None:
        self.best = sorted([*self.best, (value, actions)], key=lambda pair: -pair[0])[: self.parents]
