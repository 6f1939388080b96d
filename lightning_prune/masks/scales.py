"""Trainable scale factors for channels that no norm scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.masks.gates import Gate


class ScaleGate(Gate):
    """Multiplies what a layer reads or writes by the factors of its channels.

    Args:
        factors: trained tensors, shared by the gates of all places where their channels pass.
        index: of each channel's factor in all of them, one after the other: int64 [channels], -1 where it has none.
        dim: the channels' dim, from the end.
    """

    def __init__(self, factors: Sequence[Tensor], index: Tensor, dim: int) -> None:
        self.factors, self.index, self.dim = factors, index, dim

    def __call__(self, x: Tensor) -> Tensor:
        values = F.pad(torch.cat([*self.factors]), (0, 1), value=1.0)[self.index]  # -1 is the one at the end
        return x * values.view(-1, *[1] * (-1 - self.dim)).to(x.dtype)

    def parameters(self) -> Sequence[Tensor]:
        return self.factors
