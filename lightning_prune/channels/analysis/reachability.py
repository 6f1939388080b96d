"""What depends on the input, and what the output depends on, once some channel groups are gone.

Read off the graph call by call; nothing is computed with the model's weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from lightning_prune.channels.analysis.taint import CONVOLUTIONS
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.propagate import operator_name
from lightning_prune.channels.trace.program import nested


@dataclass(frozen=True)
class Flow:
    """Of a graph's calls.

    Attributes:
        empty: bool of shape (groups,): the groups that are gone.
        varies: the calls that depend on the network's input.
        needed: the calls that the network's output depends on.
        connected: whether every output that depends on the input in the dense model still does.
    """

    empty: Tensor
    varies: frozenset[Node]
    needed: frozenset[Node]
    connected: bool


class Flows:
    """Follows one graph again and again.

    Attributes:
        closed: bool of shape (groups,): groups whose channels are read by something else than a convolution or a
            linear layer, of which nothing is known without channels.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._states, self._inputs = graph.program.states, set(graph.program.inputs)
        self._nodes = [n for n in graph.program.graph.nodes if n.op in ("placeholder", "call_function")]
        self._outputs = next(n for n in graph.program.graph.nodes if n.op == "output").all_input_nodes
        self._products = {n for n in self._nodes if _is_product(n)}
        self._norms = {n for n in self._nodes if n.op == "call_function" and operator_name(n.target) == "batch_norm"}
        self._summed: dict[Node, Tensor] = {}
        self.closed = torch.zeros(graph.size, dtype=torch.bool)
        self._read = torch.zeros_like(self.closed)
        for place in graph.sums:
            free = place.ids[place.ids >= 0]
            self._read[free] = True
            if place.node in self._products and place.argument == "input":
                self._summed[place.node] = place.ids
            else:
                self.closed[free] = True
        for name in self._passed_on():
            for ids in graph.axes.get(name, {}).values():
                self.closed[ids[ids >= 0]] = True
        self._varying = self._reached(()) & set(self._outputs)

    def _passed_on(self) -> Iterator[str]:
        """Tensors that a nested graph (a region under autocast) gets: what happens there is not looked at."""
        closed = {node for node in self.graph.program.graph.nodes if nested(node)}
        for node in self._nodes:
            if closed & set(node.all_input_nodes):
                yield from (str(self._states[a.name]) for a in node.all_input_nodes if a.name in self._states)

    def without(self, empty: Tensor, silent: Collection[str] = ()) -> Flow:
        """The flow once the groups `empty`, bool of shape (groups,), are gone; `silent` norms ignore their input."""
        stops = {n for n, ids in self._summed.items() if all_in(ids, empty)}
        stops |= {n for n in self._products if self._rowless(n, empty)}
        stops |= {n for n in self._norms if self._norm_of(n) in silent}
        varies = self._reached(stops)
        needed: set[Node] = set()
        stack = list(self._outputs)
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack += node.all_input_nodes[1:] if node in stops else node.all_input_nodes
        return Flow(empty, frozenset(varies), frozenset(needed), self._varying <= varies)

    def _reached(self, stops: Collection[Node]) -> set[Node]:
        """What depends on the network's input, if nothing goes through some calls."""
        found: set[Node] = set()
        for node in self._nodes:
            if node.name in self._inputs or (node not in stops and any(a in found for a in node.all_input_nodes)):
                found.add(node)
        return found

    def unread(self, flow: Flow) -> Tensor:
        """Groups that nothing reads which the output depends on: bool of shape (groups,)."""
        read = self.closed.clone()
        for node, ids in self._summed.items():
            if node in flow.needed and not self._rowless(node, flow.empty):
                read[ids[ids >= 0]] = True
        return self._read & ~read

    def constant(self, flow: Flow) -> Tensor:
        """Groups that are the same for any input, wherever they are read: bool of shape (groups,)."""
        varying = self.closed.clone()
        for node, ids in self._summed.items():
            if node.args[0] in flow.varies:
                varying[ids[ids >= 0]] = True
        return self._read & ~varying

    def _norm_of(self, node: Node) -> str:
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        return str(self._states.get(weight.name, "")).removesuffix(".weight") if isinstance(weight, Node) else ""

    def _rowless(self, node: Node, empty: Tensor) -> bool:
        """Whether no output is left of a convolution or linear layer."""
        weight = node.args[1]
        name = self._states.get(weight.name) if isinstance(weight, Node) else None
        ids = self.graph.axes.get(str(name), {}).get(0)
        return ids is not None and all_in(ids, empty)


def all_in(ids: Tensor, chosen: Tensor) -> bool:
    """Whether a vector of group ids has chosen groups only, and none that is frozen."""
    return bool((ids >= 0).all()) and bool(chosen[ids].all())


def _is_product(node: Node) -> bool:
    """A convolution or linear layer, called as (input, weight, ..)."""
    if node.op != "call_function" or len(node.args) < 2 or not isinstance(node.args[0], Node):
        return False
    return operator_name(node.target) in CONVOLUTIONS or operator_name(node.target) == "linear"
