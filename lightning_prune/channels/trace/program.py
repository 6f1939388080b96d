"""The graph of one run of a model, as everything else reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node

STATE = (InputKind.PARAMETER, InputKind.BUFFER)


def nested(node: Node) -> Graph | None:
    """The graph that a node of an exported graph holds, such as a region under autocast."""
    child = getattr(node.graph.owning_module, str(node.target), None) if node.op == "get_attr" else None
    return child.graph if isinstance(child, GraphModule) else None


@dataclass(frozen=True)
class Program:
    """A graph of ATen calls, with a fake tensor in ``meta["val"]`` of each, whose tensors come in as placeholders.

    Attributes:
        graph: its nested graphs, where it has some, are in ``graph.owning_module``.
        states: {placeholder: name of a parameter or buffer}, of all that the model has; a tensor with two names has
            the placeholder of one of them.
        parameters: names of the parameters among those.
        inputs: the placeholders of the leaves of the example input, in order.
        held: {placeholder: tensor} of constants and of buffers of integers.
    """

    graph: Graph
    states: dict[str, str]
    parameters: frozenset[str]
    inputs: tuple[str, ...]
    held: dict[str, Tensor]

    @classmethod
    def of_export(cls, program: ExportedProgram) -> Program:
        """What `torch.export` made of a model."""
        specs = program.graph_signature.input_specs
        held = {}
        for spec in specs:
            tensor = program.state_dict.get(spec.target or "", program.constants.get(spec.target or ""))
            if isinstance(tensor, Tensor) and (spec.kind not in STATE or not tensor.is_floating_point()):
                held[spec.arg.name] = tensor
        return cls(
            program.graph_module.graph,
            {s.arg.name: s.target for s in specs if s.kind in STATE and s.target is not None},
            frozenset(s.target for s in specs if s.kind == InputKind.PARAMETER and s.target is not None),
            tuple(s.arg.name for s in specs if s.kind == InputKind.USER_INPUT),
            held,
        )

    def placeholders(self) -> list[Node]:
        """All of them, in the order in which the graph takes them."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def unused(self) -> list[str]:
        """The parameters that no call uses, by name."""
        used = {self.states.get(node.name) for node in self.placeholders() if node.users}
        return [name for name in self.states.values() if name in self.parameters and name not in used]

    def sources(self, replaced: Mapping[str, Tensor] | None = None) -> list[tuple[str, Any]]:
        """For each placeholder ("state", tensor name), ("input", position) or ("constant", tensor).

        replaced: {placeholder: the constant that takes its place}.
        """
        found: list[tuple[str, Any]] = []
        positions = {name: i for i, name in enumerate(self.inputs)}
        for name in (node.name for node in self.placeholders()):
            if replaced and name in replaced:
                found.append(("constant", replaced[name]))
            elif name in self.states:
                found.append(("state", self.states[name]))
            elif name in positions:
                found.append(("input", positions[name]))
            else:
                found.append(("constant", self.held.get(name)))
        return found
