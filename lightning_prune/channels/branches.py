"""Which branches may go whole: layers that may lose all of their channels, as another path carries the network on.

A layer of dead channels on the only path keeps a channel. In a residual branch, a concatenation or a gate it need not:
what reads it becomes constant, and what it read is of no use any more. Both follow from the graph alone, call by call:

- a call *varies* if it depends on the network's input. A convolution or linear layer none of whose inputs is left does
  not, and neither does a BatchNorm whose scale factors are all zero;
- a call is *needed* if the output depends on it. What only feeds such a layer is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from lightning_prune.channels.graph import ChannelGraph
from lightning_prune.channels.hollow import may_be_hollow
from lightning_prune.channels.label import operator_name
from lightning_prune.channels.nan_run import CONVOLUTIONS

Check = Callable[[Tensor], str]
"""Says why a model cannot run without some classes, bool of shape (classes,); "" if it can."""

ONLY_PATH = "no other path leads from the network's input to its output"


@dataclass(frozen=True)
class Whole:
    """What goes whole.

    Attributes:
        empty: bool of shape (classes,): the classes of the layers that lose all channels.
        refused: {tensor: why it keeps a channel though all of them were to go}.
        floored: bool of shape (classes,): those of them that the graph would let go, but not the check.
    """

    empty: Tensor
    refused: dict[str, str]
    floored: Tensor


@dataclass(frozen=True)
class _Flow:
    varies: frozenset[Node]
    needed: frozenset[Node]


class Branches:
    """The branches of one model, looked at again and again; nothing is computed with its weights."""

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.graph, self.model = graph, model
        self._vectors: dict[bytes, tuple[Tensor, list[tuple[str, int]]]] = {}
        for name, dim, ids in graph.each():
            if bool((ids >= 0).all()):
                self._vectors.setdefault(ids.numpy().tobytes(), (ids, []))[1].append((name, dim))
        specs = graph.program.graph_signature.input_specs
        self._states = {s.arg.name: s.target for s in specs if s.kind in (InputKind.PARAMETER, InputKind.BUFFER)}
        self._inputs = {s.arg.name for s in specs if s.kind == InputKind.USER_INPUT and hasattr(s.arg, "name")}
        self._nodes = [n for n in graph.program.graph.nodes if n.op in ("placeholder", "call_function")]
        self._output = next(n for n in graph.program.graph.nodes if n.op == "output")
        self._products = {n for n in self._nodes if _is_product(n)}
        self._norms = {n for n in self._nodes if n.op == "call_function" and operator_name(n.target) == "batch_norm"}
        self._summed: dict[Node, Tensor] = {}
        self._closed = torch.zeros(graph.size, dtype=torch.bool)  # read where nothing of this applies
        self._read = torch.zeros_like(self._closed)
        for place in graph.sums:
            free = place.classes[place.classes >= 0]
            self._read[free] = True
            if place.node in self._products and place.argument == "input":
                self._summed[place.node] = place.classes
            else:
                self._closed[free] = True
        for name in self._passed_on():
            for ids in graph.axes.get(name, {}).values():
                self._closed[ids[ids >= 0]] = True

    def _passed_on(self) -> Iterator[str]:
        """Tensors that a nested graph (a region under autocast) gets: what happens there is not looked at."""
        for node in self._nodes:
            if any(a.op == "get_attr" and isinstance(_held(a), GraphModule) for a in node.all_input_nodes):
                yield from (str(self._states[a.name]) for a in node.all_input_nodes if a.name in self._states)

    def asleep(self) -> frozenset[str]:
        """The BatchNorms whose scale factors are all exactly zero."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        weights = {path: parameters.get(f"{path}.weight") for path in self.graph.norms}
        return frozenset(path for path, w in weights.items() if w is not None and len(w) and not bool(w.any()))

    def useless(self, asleep: Collection[str]) -> Tensor:
        """Classes that only feed norms without a scale factor: bool of shape (classes,)."""
        nothing = torch.zeros_like(self._closed)
        flow = self._flow(nothing, asleep)
        if not asleep or not any(n in flow.varies for n in self._output.all_input_nodes):
            return nothing  # a network of one path that is shut is broken, not finished
        return self._unread(flow, nothing)

    def whole(
        self,
        gone: Tensor,
        *,
        stay: Tensor | None = None,
        constants: bool = False,
        asleep: Collection[str] = (),
        check: Check = lambda empty: "",
    ) -> Whole:
        """The layers all of whose channels are to go, where the network can do without, and what goes with them.

        Args:
            gone: the classes that are to go, bool of shape (classes,).
            stay: the classes that may not go, bool of shape (classes,).
            constants: whether layers go too that would be constant. (What would be of no use goes in any case.)
            asleep: norms that give the same for any input.
            check: asked before any of it is settled.
        """
        stay = torch.zeros_like(gone) if stay is None else stay
        gone = gone & ~stay
        nothing = torch.zeros_like(gone)
        seeds = [(ids, owners[0][0]) for ids, owners in self._vectors.values() if bool(gone[ids].all())]
        if not seeds:
            return Whole(nothing, {}, nothing)
        base = self._flow(nothing, ())
        fixed = self._constant(base) if constants else torch.ones_like(gone)

        def close(empty: Tensor) -> Tensor:
            """With what becomes constant or useless by it, whole layers at a time."""
            while True:
                flow = self._flow(empty, asleep)
                more = empty | gone | self._unread(flow, empty)
                if constants:
                    more |= self._constant(flow) & ~fixed
                more &= ~stay
                grown = empty.clone()
                for ids, _ in self._vectors.values():
                    # by `gone` alone a layer is a seed of its own
                    if bool(more[ids].all()) and not bool(gone[ids].all()):
                        grown[ids] = True
                if bool((grown == empty).all()):
                    return empty
                empty = grown

        def forbids(empty: Tensor) -> str:
            return self._forbids(empty, base, self._flow(empty, asleep))

        together = nothing.clone()
        for ids, _ in seeds:
            together[ids] = True
        together = close(together)
        if not (forbids(together) or check(together)):
            return Whole(together, {}, nothing)
        empty, floored, refused = nothing, nothing.clone(), dict[str, str]()
        for ids, name in seeds:
            more = empty.clone()
            more[ids] = True
            more = close(more)
            if bool((more == empty).all()):
                continue
            if why := forbids(more):
                refused[name] = why
            elif why := check(more):
                refused[name] = why
                floored[ids] = True
            else:
                empty = more
        return Whole(empty, refused, floored)

    def _flow(self, empty: Tensor, asleep: Collection[str]) -> _Flow:
        """What varies and what is needed once the classes in `empty` are gone."""
        cut = {n for n, ids in self._summed.items() if _all(ids, empty)}
        cut |= {n for n in self._products if self._rowless(n, empty)}
        cut |= {n for n in self._norms if self._norm_of(n) in asleep}
        varies: set[Node] = set()
        for node in self._nodes:
            if node.op == "placeholder":
                if node.name in self._inputs:
                    varies.add(node)
            elif node not in cut and any(a in varies for a in node.all_input_nodes):
                varies.add(node)
        needed: set[Node] = set()
        stack = list(self._output.all_input_nodes)
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack += node.all_input_nodes[1:] if node in cut else node.all_input_nodes
        return _Flow(frozenset(varies), frozenset(needed))

    def _norm_of(self, node: Node) -> str:
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        return str(self._states.get(weight.name, "")).removesuffix(".weight") if isinstance(weight, Node) else ""

    def _rowless(self, node: Node, empty: Tensor) -> bool:
        """Whether no output is left of a convolution or linear layer."""
        weight = node.args[1]
        name = self._states.get(weight.name) if isinstance(weight, Node) else None
        ids = self.graph.axes.get(str(name), {}).get(0)
        return ids is not None and _all(ids, empty)

    def _unread(self, flow: _Flow, empty: Tensor) -> Tensor:
        """Classes that nothing reads any more which the output depends on."""
        read = self._closed.clone()
        for node, ids in self._summed.items():
            if node in flow.needed and not self._rowless(node, empty):
                read[ids[ids >= 0]] = True
        return self._read & ~read

    def _constant(self, flow: _Flow) -> Tensor:
        """Classes that are the same for any input, wherever they are read."""
        live = self._closed.clone()
        for node, ids in self._summed.items():
            if node.args[0] in flow.varies:
                live[ids[ids >= 0]] = True
        return self._read & ~live

    def _forbids(self, empty: Tensor, base: _Flow, flow: _Flow) -> str:
        """Why the classes in `empty` may not all go; "" if they may."""
        if bool((empty & self._closed).any()):
            return "an operator reads its channels that cannot do without"
        if any(n in base.varies and n not in flow.varies for n in self._output.all_input_nodes):
            return ONLY_PATH
        for ids, owners in self._vectors.values():
            for name, _ in owners if bool(empty[ids].all()) else ():
                path = name.rpartition(".")[0]
                module = self.model.get_submodule(path)
                if not may_be_hollow(module):
                    return f"{path or 'the model'} ({type(module).__name__}) cannot run without channels"
        return ""


def _all(ids: Tensor, empty: Tensor) -> bool:
    return bool((ids >= 0).all()) and bool(empty[ids].all())


def _is_product(node: Node) -> bool:
    """A convolution or linear layer, called as (input, weight, ..)."""
    if node.op != "call_function" or len(node.args) < 2 or not isinstance(node.args[0], Node):
        return False
    return operator_name(node.target) in CONVOLUTIONS or operator_name(node.target) == "linear"


def _held(node: Node) -> Any:
    value: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        value = getattr(value, name, None)
    return value
