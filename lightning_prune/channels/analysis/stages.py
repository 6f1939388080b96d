"""Stages of a network: runs of residual branches over one stream, of which the last can be taken out whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_prune.channels.analysis.branches import Branches
from lightning_prune.channels.analysis.taint import CONVOLUTIONS
from lightning_prune.channels.graph.cost import COUNTED
from lightning_prune.channels.graph.propagate import operator_name, shape_of
from lightning_prune.channels.trace.sites import module_path

_PASSES = {
    "alias", "clone", "contiguous", "dropout", "feature_dropout", "flatten", "permute", "relu", "reshape", "roll",
    "squeeze", "transpose", "unflatten", "unsqueeze", "view",
}  # fmt: skip
"""f(g·x) = g·f(x) for g ≥ 0, as they are called in an exported graph."""
_ENDS = {*CONVOLUTIONS, "linear", "batch_norm", "layer_norm", "group_norm"}  # zero, once weight and bias are


@dataclass(frozen=True)
class Branch:
    """A residual branch, ``x + f(x)``, that may be taken out.

    Attributes:
        end: path of its last layer with parameters: ``f`` is in proportion to what that puts out.
        layers: paths of the layers whose multiply-accumulates are the branch's alone.
        inside: bool [groups], the channels that no layer outside of it has.
    """

    end: str
    layers: frozenset[str]
    inside: Tensor


@dataclass(frozen=True)
class Stage:
    """Residual branches one after the other on one stream.

    Attributes:
        blocks: how often something is added to the stream, by branches that stay too.
        branches: those that may be taken out, in the order of the network.
    """

    blocks: int
    branches: tuple[Branch, ...]


def stages_of(branches: Branches, stay: Tensor, fixed: Collection[str] = ()) -> list[Stage]:
    """The stages that have a branch that may be taken out.

    A branch may be if surgery can: with its inside gone, nothing in it depends on the network's input. It must end in a
    layer with parameters of its own, behind which nothing stands but what passes a factor on. A branch with another in
    it stays.

    Args:
        branches: of the network.
        stay: bool [groups], the groups that may not go.
        fixed: names of parameters that may not change.
    """
    found: list[tuple[list[Node], list[Branch]]] = []
    stage_of: dict[Node, int] = {}
    every = _Additions(branches)
    for add, pair in every.pairs.items():
        stream, branch = pair or (None, None)
        before = every.addition_behind(stream) if stream is not None else None
        if before is None or before not in stage_of:
            found.append(([], []))
        stage_of[add] = len(found) - 1 if before is None else stage_of.get(before, len(found) - 1)
        blocks, ready = found[stage_of[add]]
        blocks.append(add)
        if stream is not None and branch is not None:
            whole = every.only_for(add, branch)
            nested = any(every.pairs.get(node) for node in whole)
            if not nested and (known := every.described(add, branch, whole, stay, fixed)) is not None:
                ready.append(known)
    return [Stage(len(blocks), tuple(ready)) for blocks, ready in found if ready]


class _Additions:
    """The additions of two activations of one shape in a network's graph, in its order.

    Attributes:
        pairs: {addition: (stream, branch)}, None where neither of what is added comes from the other.
    """

    def __init__(self, branches: Branches) -> None:
        self.graph, self.flows, self.branches = branches.graph, branches.flows, branches
        self.modules = dict(branches.model.named_modules())
        program = self.graph.program
        self.states = program.states
        self.nodes = list(program.graph.nodes)
        self.output = next(n for n in self.nodes if n.op == "output")
        self.needed = self._behind(self.output)
        self.flow = self.flows.without(torch.zeros(self.graph.size, dtype=torch.bool))
        self.pairs: dict[Node, tuple[Node, Node] | None] = {}
        for node in self.nodes:
            if node.op == "call_function" and operator_name(node.target) == "add" and node in self.needed:
                sides = [a for a in node.args if isinstance(a, Node) and a in self.flow.varies]
                if len(sides) == 2 and sides[0] is not sides[1] and _shape(sides[0]) == _shape(sides[1]):
                    self.pairs[node] = self._pair(*sides)

    def _pair(self, a: Node, b: Node) -> tuple[Node, Node] | None:
        if a in self._behind(b):
            return a, b
        return (b, a) if b in self._behind(a) else None

    def _behind(self, end: Node, cut: tuple[Node, Node] | None = None) -> set[Node]:
        """All that a node is computed from, itself included; ``cut``: a node, and an argument of it not to follow."""
        found: set[Node] = set()
        stack = [end]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += [a for a in node.all_input_nodes if cut is None or (node, a) != cut]
        return found

    def addition_behind(self, stream: Node) -> Node | None:
        """The addition that gave a stream."""
        node: Node | None = stream
        while node is not None and node not in self.pairs:
            node = _passed_on(node)
        return node

    def only_for(self, add: Node, branch: Node) -> set[Node]:
        """What is computed for a branch alone."""
        return self.needed - self._behind(self.output, (add, branch))

    def described(
        self, add: Node, branch: Node, whole: set[Node], stay: Tensor, fixed: Collection[str]
    ) -> Branch | None:
        """The branch; None if it cannot be taken out."""
        path = self._end(add, branch)
        if path is None or branch not in whole:
            return None
        parameters = [f"{path}.{name}" for name, _ in self.modules[path].named_parameters()]
        if any(name in fixed for name in parameters):
            return None
        inside = self._groups(node for node in whole if node.op == "placeholder")
        inside[self._groups(n for n in self.needed - whole if n.op == "placeholder")] = False
        gone = self.branches.removable(inside, stay=stay, constants=True)
        if not bool(gone.empty.any()) or branch in self.flows.without(gone.empty).varies:
            return None
        mine, others = self._counted(whole), self._counted(self.needed - whole)
        return Branch(path, frozenset(mine - others), inside)

    def _end(self, add: Node, branch: Node) -> str | None:
        """Path of the layer that a branch ends in; None if its output is not in proportion to that of a layer."""
        node = branch
        while len(node.users) == 1 and (behind := _passed_on(node) or self._scaled(node)) is not None:
            node = behind
        if len(node.users) != 1 or node.op != "call_function" or operator_name(node.target) not in _ENDS:
            return None
        path = module_path(node)[0]
        module = self.modules.get(path)
        own = {n for n, _ in module.named_parameters()} if module is not None else set()
        weights = [a for a in node.all_input_nodes if self.states.get(a.name) == f"{path}.weight"]
        around = f"{module_path(add)[0]}.".startswith(f"{path}.")
        alone = "weight" in own and own <= {"weight", "bias"} and len(weights) == 1 and len(weights[0].users) == 1
        return path if alone and not around else None

    def _scaled(self, node: Node) -> Node | None:
        """What a call multiplies by something that does not depend on the input, as LayerScale does."""
        if node.op != "call_function" or operator_name(node.target) != "mul":
            return None
        moving = [a for a in node.args if isinstance(a, Node) and a in self.flow.varies]
        return moving[0] if len(moving) == 1 else None

    def _groups(self, placeholders: Iterator[Node]) -> Tensor:
        found = torch.zeros(self.graph.size, dtype=torch.bool)
        for node in placeholders:
            for ids in self.graph.axes.get(str(self.states.get(node.name)), {}).values():
                found[ids[ids >= 0]] = True
        return found

    def _counted(self, nodes: Collection[Node]) -> set[str]:
        return {module_path(n)[0] for n in nodes if n.op == "call_function" and operator_name(n.target) in COUNTED}


def _passed_on(node: Node) -> Node | None:
    """What a call passes on; None if it does more than that."""
    passes = node.op == "call_function" and operator_name(node.target) in _PASSES
    return node.all_input_nodes[0] if passes and len(node.all_input_nodes) == 1 else None


def _shape(node: Node) -> tuple[int, ...]:
    return shape_of(node.meta["val"])


@torch.no_grad()
def silence_(networks: Iterable[nn.Module], ends: Collection[str]) -> None:
    """Makes the weights and biases of layers zero, so that the branches that end there add nothing."""
    for module in (network.get_submodule(path) for network in networks for path in ends):
        for parameter in module.parameters(recurse=False):
            parameter.zero_()
