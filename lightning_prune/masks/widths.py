"""Counts to choose among, with a distribution each: widths of layers and depths of stages; and gates of the widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.gating import gumbel_pairs, interpolate_channels
from lightning_prune.masks.gates import Gate
from lightning_prune.support.noise import Noise


class Counts:
    """How many stay, of the channels of each layer or of the residual branches of each stage: the first of them.

    Args:
        sizes: how many there are in each row.
        shares: of them, what may be chosen, increasing up to 1; at least one stays.
        device: of the logits.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], device: torch.device) -> None:
        self.counts = [[max(1, round(size * share)) for share in shares] for size in sizes]
        self.logits = torch.zeros(len(sizes), len(shares), device=device, requires_grad=True)
        self.drawn: tuple[list[list[int]], Tensor] | None = None  # choices and weights, while a step runs

    def draw(self, noise: Noise, temperature: float, *, learn: bool) -> None:
        """Draws two counts of each row and their weights; with ``learn`` the weights carry a gradient."""
        logits = self.logits if learn else self.logits.detach()
        chosen, weights = gumbel_pairs(logits, noise.uniform(*logits.shape, like=logits), temperature)
        self.drawn = chosen.tolist(), weights

    def best(self) -> list[int]:
        """The most likely count of each row; of several, the largest."""
        chosen = self.logits.shape[1] - 1 - self.logits.detach().flip(1).argmax(1)
        return [counts[i] for counts, i in zip(self.counts, chosen.tolist(), strict=True)]

    def stays(self, row: Tensor, rank: Tensor) -> Tensor:
        """The probability that each of some channels or branches stays: those of the lowest ranks do.

        Args:
            row, rank: of each, int64 [some].

        Returns:
            [some], differentiable in the logits.
        """
        counts = torch.tensor(self.counts, device=self.logits.device)
        inside = rank[:, None] < counts[row]
        return (self.logits.softmax(1)[row] * inside).sum(1)


class Part(NamedTuple):
    """The channels of one layer at a place.

    Attributes:
        layer: its number.
        indices: of its channels there, [size, times]: in the order of their ranks, each as often as it occurs.
    """

    layer: int
    indices: Tensor


class WidthGate(Gate):
    """What a layer reads, at the width of the layers that write it.

    While a step runs, ``w₁·CWI(x[:c₁]) + w₂·CWI(x[:c₂])``: the first channels of both drawn widths, brought to the
    larger one by channel-wise interpolation, and zeros behind. Else the first channels of the most likely width.

    Args:
        widths: shared by all gates.
        parts: the layers whose channels stand there; other channels are left alone.
        dim: the channels' dim, from the end.
        owner: whether this gate stands for the logits of all.
    """

    def __init__(self, widths: Counts, parts: Sequence[Part], dim: int, owner: bool) -> None:
        self.widths, self.parts, self.dim, self.owner = widths, parts, dim, owner

    def __call__(self, x: Tensor) -> Tensor:
        out, drawn = x, self.widths.drawn
        best = self.widths.best() if drawn is None else []
        for layer, indices in self.parts:
            size = len(indices)
            moved = x.movedim(self.dim, 1)
            here = moved.index_select(1, indices.flatten())
            flat = here.reshape(len(here), size, -1)  # those of one channel beside each other
            if drawn is None:
                width = best[layer]
                mixed = flat[:, :width]
            else:
                first, second = (self.widths.counts[layer][i] for i in drawn[0][layer])
                width, (w1, w2) = max(first, second), drawn[1][layer].to(x.dtype)
                mixed = w1 * interpolate_channels(flat[:, :first], width)
                mixed = mixed + w2 * interpolate_channels(flat[:, :second], width)
            behind = flat.new_zeros(len(flat), size - width, flat.shape[2])
            new = torch.cat([mixed, behind], 1).reshape(here.shape).movedim(1, self.dim)
            out = out.index_copy(self.dim, indices.flatten(), new)
        return out

    def parameters(self) -> Sequence[Tensor]:
        return [self.widths.logits] if self.owner else []

    def expire(self) -> None:
        self.widths.drawn = None


def ranks_of(units: ChannelUnits) -> tuple[list[int], Tensor]:
    """How many groups each layer has, and the place of each in its layer, int64 [groups]; 0 of those that stay."""
    ids, rank, sizes = torch.arange(units.size), torch.zeros_like(units.layer), []
    for i in range(len(units.layers)):
        mine = ids[units.layer == i]
        rank[mine] = torch.arange(len(mine))
        sizes.append(len(mine))
    return sizes, rank


def width_gates(widths: Counts, units: ChannelUnits, rank: Tensor) -> tuple[dict[str, Gate], set[int]]:
    """A gate on whatever reads channels, and the layers whose widths are mixed by them.

    Args:
        widths: a row for each of the units' layers.
        units: of the network.
        rank: of each group, as `ranks_of` gives it.
    """
    found: dict[str, Gate] = {}
    mixed: set[int] = set()
    for name, tap in units.taps.items():
        layers = units.layer[tap.groups[tap.groups >= 0]].unique().tolist()
        parts = [part for i in layers if (part := _part(i, tap.groups, units, rank)) is not None]
        found[name] = WidthGate(widths, parts, tap.dim, owner=not found)
        mixed |= {part.layer for part in parts}
    return found, mixed


def _part(layer: int, groups: Tensor, units: ChannelUnits, rank: Tensor) -> Part | None:
    """The channels of a layer at a place, where all of its groups stand there equally often."""
    size = int((units.layer == layer).sum())
    at = ((groups >= 0) & (units.layer[groups.clamp_min(0)] == layer)).nonzero().flatten()
    ranks = rank.cpu()[groups[at]]
    order = ranks.argsort(stable=True)
    if len(at) % size or not bool((ranks[order] == torch.arange(size).repeat_interleave(len(at) // size)).all()):
        return None
    return Part(layer, at[order].view(size, -1).to(rank.device))
