"""Multiply-accumulates as a differentiable function of how much of each channel group is used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_prune.channels.graph.cost import ChannelCost


class ExpectedMacs:
    """The cost of a network whose groups are used in part: by a share of the samples, or with a probability.

    Widths of a layer count as independent. With 0 and 1 alone it is `ChannelCost.macs`, as a share.

    Args:
        cost: of the network.
        device: where the shares will be.
        writers: {path of a layer: group of each of its output channels}, of layers that will say themselves how much
            they write, as others may write to the same groups.
        branches: {path of a layer: number of the branch that it is in}, of those that may be skipped.
    """

    def __init__(
        self, cost: ChannelCost, device: torch.device, writers: Mapping[str, Tensor] | None = None,
        branches: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.total = max(cost.macs(), 1)
        self._terms = []
        self._free: list[tuple[Tensor, int, int]] = []  # of each width: groups that may go, others, all
        known: dict[int, int] = {}
        for layer, base, widths in cost.terms():
            own = writers.get(layer) if writers is not None else None
            # A layer's outputs come first among its widths.
            mine = next((i for i, ids in enumerate(widths) if own is not None and torch.equal(ids, own)), None)
            rest = [ids for i, ids in enumerate(widths) if i != mine]
            for ids in rest:
                if id(ids) not in known:
                    known[id(ids)] = len(self._free)
                    free = ids[ids >= 0]
                    self._free.append((free.to(device), len(ids) - len(free), max(len(ids), 1)))
            places = [known[id(ids)] for ids in rest]
            branch = (branches or {}).get(layer)
            self._terms.append((base / self.total, places, None if mine is None else layer, branch))

    def __call__(self, used: Tensor, written: Mapping[str, Tensor] | None = None, runs: Tensor | None = None) -> Tensor:
        """The share of all multiply-accumulates, [...].

        Args:
            used: how much of each group is used, in [0, 1], [..., groups].
            written: by the path of a layer, how much of its outputs it writes, [...]; of all `writers` whose
                outputs are a width of theirs.
            runs: the probability that each branch is not skipped, [branches].
        """
        shares = [(used[..., free].sum(-1) + others) / size for free, others, size in self._free]
        total = used.new_zeros(used.shape[:-1])
        for base, widths, layer, branch in self._terms:
            value = base if layer is None else base * (written or {})[layer]
            if branch is not None and runs is not None:
                value = value * runs[branch]
            for i in widths:
                value = value * shares[i]
            total = total + value
        return total
