"""What the labelling pass knows about one tensor of the graph, and what the rules get to see of one operator call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from lightning_prune.channels.trace.labels import Labels
from lightning_prune.channels.trace.options import Options
from lightning_prune.channels.trace.sites import Count, Parts, Pick, Product, Sum, module_path

LARGEST_AXIS = 1 << 17
"""A dimension longer than this is never labelled (flattened images, generated weights); it only costs time."""


@dataclass(frozen=True)
class Value:
    """The labels of one tensor.

    Attributes:
        shape: the tensor's shape while tracing.
        axes: {dim: labels of shape (shape[dim],)}. A dim that is absent is the same for all channels. A tensor stays
            rectangular when channels go, so one vector for each dim says all there is to say.
    """

    shape: tuple[int, ...]
    axes: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Context:
    """What all rules share: the labels, the options, and the places that the surgery will have to rewrite."""

    labels: Labels
    options: Options
    counts: list[Count] = field(default_factory=list)
    equal_parts: list[Parts] = field(default_factory=list)
    approximations: list[str] = field(default_factory=list)
    inputs: list[tuple[str, Tensor]] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    constants: dict[Node, Tensor] = field(default_factory=dict)
    picks: list[Pick] = field(default_factory=list)


@dataclass
class Call:
    """One operator call: its arguments by schema name, with every tensor replaced by its `Value`."""

    context: Context
    node: Node
    name: str
    arguments: dict[str, Any]
    out_shapes: tuple[tuple[int, ...], ...]
    where: str

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the only output."""
        return self.out_shapes[0]

    @property
    def x(self) -> Value:
        """The first tensor argument."""
        first: Value = next(values(self.arguments))
        return first

    def dim(self, argument: str = "dim", rank: int | None = None) -> int:
        """The named argument as a non-negative dim of `x`."""
        rank = len(self.x.shape) if rank is None else rank
        return int(self.arguments[argument]) % max(rank, 1)

    def dims(self, argument: str = "dim") -> list[int]:
        """The named argument as a list of non-negative dims of `x`; None or an empty list means all."""
        given, rank = self.arguments.get(argument), len(self.x.shape)
        if given is None or (isinstance(given, Sequence) and len(given) == 0):
            return list(range(rank))
        return [int(d) % rank for d in (given if isinstance(given, Sequence) else [given])]

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Unites two label vectors element by element."""
        self.context.labels.unite(first, second)

    def freeze(self, labels: Tensor | None, why: str) -> None:
        """Freezes the channels of `labels`, with the operator's name and place in the reason."""
        if labels is not None:
            self.context.labels.freeze(labels, f"{self.name} at {self.where}: {why}")

    def freeze_all(self, why: str) -> None:
        """Freezes every channel of every tensor argument."""
        for value in values(self.arguments):
            for labels in value.axes.values():
                self.freeze(labels, why)

    def keep_axes(self, value: Value, dims: dict[int, int], why: str, shape: tuple[int, ...] | None = None) -> Value:
        """Carries the axes {old dim: new dim} of `value` to an output; every other axis freezes with the reason."""
        for dim, labels in value.axes.items():
            if dim not in dims:
                self.freeze(labels, why)
        axes = {dims[dim]: labels for dim, labels in value.axes.items() if dim in dims}
        return Value(self.shape if shape is None else shape, axes)

    def keep_in_all(self, dims: dict[int, int], why: str) -> Outcome:
        """Carries axes of `x`, as `keep_axes`, to every output."""
        out = tuple(self.keep_axes(self.x, dims, why, shape) for shape in self.out_shapes)
        return out if len(out) > 1 else out[0]

    def consumes(self, argument: str, value: Value, dim: int) -> None:
        """Records that the call sums over the channels in a dim of an argument."""
        if dim in value.axes:
            self.context.sums.append(Sum(self.node, argument, dim, value.axes[dim]))

    def costs(self, *labels: Tensor | None, share: float = 1.0) -> None:
        """Records that a share of the call's multiplications is proportional to the channels of each of `labels`."""
        self.context.products.append(Product(self.node, share, tuple(v for v in labels if v is not None)))

    def width(self, argument: str, labels: Tensor, position: int | None = None) -> None:
        """Records that an integer argument counts the channels of `labels`."""
        holder = self.arguments.get(argument)
        value = holder[position] if position is not None and isinstance(holder, Sequence) else holder
        if value is None:
            return
        # A symbolic size stands in the graph as a node: the count while tracing is the length of the labels.
        number = value if isinstance(value, int) else len(labels)
        self.context.counts.append(Count(self.node, module_path(self.node)[0], argument, position, number, labels))


Outcome = Value | tuple[Value, ...] | None
Rule = Callable[[Call], Outcome]


def values(arguments: Any) -> Any:
    """Iterates over all `Value`s inside nested dicts and sequences, in order."""
    if isinstance(arguments, Value):
        yield arguments
    elif isinstance(arguments, dict):
        for item in arguments.values():
            yield from values(item)
    elif isinstance(arguments, (list, tuple)):
        for item in arguments:
            yield from values(item)
