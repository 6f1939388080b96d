"""Random numbers that are a function of where a training is, so that a resumed one draws the same."""

from __future__ import annotations

import torch
from torch import Tensor


class Noise:
    """Uniform numbers from a generator of its own; the global one is left alone.

    Args:
        seed: names the sequence of sequences.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generator = torch.Generator()

    def restart(self, step: int, rank: int = 0) -> None:
        """Begin the sequence of a step, and of a rank where each shall have its own."""
        key = 0
        for part in (self.seed, step, rank):
            key = (key * 1_000_003 + part + 1) % (1 << 63)
        self._generator.manual_seed(key)

    def uniform(self, *shape: int, like: Tensor) -> Tensor:
        """Numbers in (0, 1) of this shape, float32, on the device of ``like``: the same on every device."""
        tiny = torch.finfo(torch.float32).eps
        return torch.rand(shape, generator=self._generator, dtype=torch.float32).clamp(tiny, 1 - tiny).to(like.device)
