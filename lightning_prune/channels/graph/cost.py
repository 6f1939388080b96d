"""Parameters and multiply-accumulates as functions of the channel groups that stay, without tracing again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node, map_arg
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.propagate import operator_name, shape_of
from lightning_prune.channels.graph.vectors import Vectors
from lightning_prune.channels.trace.program import nested
from lightning_prune.channels.trace.sites import module_path

COUNTED = (
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear",
    "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "scaled_dot_product_attention",
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
)  # fmt: skip
"""Operators that PyTorch's own flop counter counts, as they are called in a traced graph."""


_CONVOLUTIONS = tuple(getattr(torch.ops.aten, f"conv{n}d").default for n in (1, 2, 3))


@dataclass(frozen=True)
class _Term:
    """A number that shrinks in proportion to each of its width vectors."""

    base: float
    widths: tuple[Tensor, ...]
    layer: str = ""

    def value(self, shares: _Shares) -> float:
        return self.base * math.prod(map(shares.of, self.widths))


class _Shares:
    """The share that stays of each width vector."""

    def __init__(self, widths: Vectors, keep: Tensor) -> None:
        pairs = zip(widths.each, widths.counts(keep), strict=True)
        self._known = {id(ids): count / len(ids) for ids, count in pairs}

    def of(self, ids: Tensor) -> float:
        return self._known[id(ids)]


@dataclass(frozen=True)
class ChannelCost:
    """What a model costs as a function of the channel groups that are kept.

    MACs are multiply-accumulates of convolutions and matrix products for one sample at the traced input size, as
    counted by `torch.utils.flop_counter` (which counts two operations for each).
    """

    size: int
    _macs: tuple[_Term, ...]
    _params: tuple[_Term, ...]
    _widths: Vectors

    @classmethod
    def of(cls, graph: ChannelGraph) -> ChannelCost:
        """Counts once, with meta tensors, at the input size that the graph was traced with."""
        involved: dict[Node, list[tuple[float, tuple[Tensor, ...]]]] = {}
        for product in graph.products:
            involved.setdefault(product.node, []).append((product.share, product.ids))
        batch = traced_batch(graph)
        macs = [
            _Term(flops / 2 / batch * share, widths, module_path(node)[0])
            for node, flops in _flops(graph.program.graph)
            for share, widths in involved.get(node, [(1.0, ())])
        ]
        params = [
            _Term(float(math.prod(shape)), tuple(graph.axes.get(name, {}).values()))
            for name, shape in graph.shapes.items()
            if name in graph.program.parameters
        ]
        widths = {id(ids): ids for term in (*macs, *params) for ids in term.widths}
        return cls(graph.size, tuple(macs), tuple(params), Vectors(widths.values()))

    def macs(self, keep: Tensor | None = None) -> int:
        """MACs of one sample when the groups in `keep` (bool of shape (groups,)) stay; None keeps all."""
        shares = self._shares(keep)
        return round(sum(term.value(shares) for term in self._macs))

    def macs_by_layer(self, keep: Tensor | None = None) -> dict[str, float]:
        """MACs of each module when the groups in `keep` stay, the most expensive first."""
        shares, found = self._shares(keep), dict[str, float]()
        for term in self._macs:
            found[term.layer] = found.get(term.layer, 0.0) + term.value(shares)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def params(self, keep: Tensor | None = None) -> int:
        """Parameters when the groups in `keep` stay; None keeps all."""
        shares = self._shares(keep)
        return round(sum(term.value(shares) for term in self._params))

    def terms(self) -> Iterator[tuple[str, float, tuple[Tensor, ...]]]:
        """Iterates over (module path, MACs, group ids of each width that they are proportional to)."""
        yield from ((term.layer, term.base, term.widths) for term in self._macs)

    def _shares(self, keep: Tensor | None) -> _Shares:
        return _Shares(self._widths, torch.ones(self.size, dtype=torch.bool) if keep is None else keep)


def traced_batch(graph: ChannelGraph) -> int:
    """Samples in the call that a graph was traced with."""
    inputs = set(graph.program.inputs)
    for node in graph.program.placeholders():
        if node.name in inputs and isinstance(node.meta.get("val"), Tensor):
            shape = shape_of(node.meta["val"])
            return shape[0] if shape else 1
    return 1


def _flops(graph: Graph) -> list[tuple[Node, int]]:
    """(call, flops) of the counted operators, nested graphs included."""
    found: list[tuple[Node, int]] = []
    for node in graph.nodes:
        if inner := nested(node):
            found += _flops(inner)
    calls = [n for n in graph.nodes if n.op == "call_function" and operator_name(n.target) in COUNTED]
    convolutions = {node: _convolution(node) for node in calls if node.target in _CONVOLUTIONS}
    given = {node: map_arg((node.args, node.kwargs), _meta) for node in calls if node not in convolutions}
    with FlopCounterMode(display=False) as counter:
        for node in calls:
            before = counter.get_total_flops()
            if node in given:
                args, kwargs = given[node]
                node.target(*args, **kwargs)
            found.append((node, convolutions.get(node, counter.get_total_flops() - before)))
    return found


def _convolution(node: Node) -> int:
    """What the counter counts of a convolution: by its shapes, as to run it on meta tensors takes ten times as long."""
    x, weight, out = (shape_of(n.meta["val"]) for n in (*node.args[:2], node))  # type: ignore[union-attr]
    return int(conv_flop_count(list(x), list(weight), list(out)))


def _meta(node: Node) -> Any:
    """A call's argument as a meta tensor."""
    value = node.meta["val"]
    return torch.empty(shape_of(value), dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value
