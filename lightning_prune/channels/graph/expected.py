"""Multiply-accumulates as a differentiable function of how much of each channel group is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_prune.channels.graph.cost import ChannelCost


class Own(NamedTuple):
    """What a layer says of the channels that it writes itself, where other layers write to the same groups.

    Attributes:
        groups: group of each of its output channels, int64 [channels]; -1 where they stay.
        used: how much of each it writes, [..., channels].
    """

    groups: Tensor
    used: Tensor


class ExpectedMacs:
    """The cost of a network whose groups are used in part: by a share of the samples, or with a probability.

    Widths of a layer count as independent. With 0 and 1 alone it is `ChannelCost.macs`, as a share.

    Args:
        cost: of the network.
        device: where the shares will be.
    """

    def __init__(self, cost: ChannelCost, device: torch.device) -> None:
        self.total = max(cost.macs(), 1)
        self._terms = [
            (layer, base, [(ids.to(device), (ids >= 0).nonzero().flatten().to(device)) for ids in widths])
            for layer, base, widths in cost.terms()
        ]

    def __call__(self, used: Tensor, own: Mapping[str, Own] | None = None) -> Tensor:
        """The share of all multiply-accumulates, [...].

        Args:
            used: how much of each group is used, in [0, 1], [..., groups].
            own: by the path of a layer, what it writes itself.
        """
        shares: dict[int, Tensor] = {}
        total = used.new_zeros(used.shape[:-1])
        for layer, base, widths in self._terms:
            mine = own.get(layer) if own is not None else None
            value = used.new_full(used.shape[:-1], base / self.total)
            for ids, free in widths:
                if mine is not None and torch.equal(mine.groups, ids.clamp_min(-1)):
                    value, mine = value * mine.used.mean(-1), None  # its outputs come first
                    continue
                if id(ids) not in shares:
                    kept = used[..., ids[free]].sum(-1)
                    shares[id(ids)] = (kept + (len(ids) - len(free))) / max(len(ids), 1)
                value = value * shares[id(ids)]
            total = total + value
        return total
