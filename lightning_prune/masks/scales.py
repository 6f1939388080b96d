"""Trainable scale factors for channels that no norm scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.taps import Tap
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


def scale_gates(factors: ScaleFactors, taps: Mapping[str, Tap]) -> dict[str, ScaleGate]:
    """{name of a place: its gate}, where channels of groups pass whose factor is no norm's.

    Args:
        factors: with index tensors on the CPU.
        taps: the places.
    """
    found, gated = {}, list(zip(factors.gates, factors.gated(), strict=True))
    for name, tap in taps.items():
        here = [(gate, ids) for gate, ids in gated if bool(torch.isin(ids, tap.groups).any())]
        if here:
            ids = torch.cat([ids for _, ids in here])
            at = ids == tap.groups[:, None]
            index = torch.where(at.any(1), at.int().argmax(1), -1)
            found[name] = ScaleGate([gate for gate, _ in here], index.to(here[0][0].device), tap.dim)
    return found
