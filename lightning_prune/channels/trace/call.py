"""What the labelling pass knows about one tensor of the graph, and what the rules get to see of one operator call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor
from torch.fx import Node

from lightning_prune.channels.trace.labels import Labels
from lightning_prune.channels.trace.sites import Count, Denominator, Parts, Pick, Product, Sum, module_path
from lightning_prune.errors import ChannelError

LARGEST_AXIS = 1 << 17
"""A dimension longer than this is never labelled (flattened images, generated weights); it only costs time."""

APPROXIMATIONS = ("eca",)

PARAMETRIZED = (
    "the weight is parametrized: prune before that is added, or take it off first with remove_parametrizations, "
    "remove_weight_norm or remove_spectral_norm of torch.nn.utils"
)


@dataclass(frozen=True)
class Options:
    """What the user decides about which channels are tied. Raises `ChannelError` for what is not allowed.

    Attributes:
        groups: "tie" removes the same position from all groups of a grouped conv, "whole" removes whole groups.
        attention: "dims" ties heads and removes the same dimensions from each, "heads" removes whole heads.
        allow_inexact: names of approximations that the user accepts ("eca").
        norms: "keep" leaves channels whose number a norm divides by, or attention in its default scale; "exact" removes
            them, and what divided by their number goes on to.
    """

    groups: str = "tie"
    attention: str = "dims"
    allow_inexact: Collection[str] = ()
    norms: str = "keep"

    def __post_init__(self) -> None:
        if self.groups not in ("tie", "whole"):
            raise ChannelError(f"groups={self.groups!r}: expected 'tie' or 'whole'")
        if self.attention not in ("dims", "heads"):
            raise ChannelError(f"attention={self.attention!r}: expected 'dims' or 'heads'")
        if self.norms not in ("keep", "exact"):
            raise ChannelError(f"norms={self.norms!r}: expected 'keep' or 'exact'")
        if isinstance(self.allow_inexact, str) or set(self.allow_inexact) - set(APPROXIMATIONS):
            raise ChannelError(f"allow_inexact={self.allow_inexact!r}: expected a collection out of {APPROXIMATIONS}")

    @classmethod
    def of_plan(cls, settings: dict[str, Any]) -> Options:
        """The options among a plan's settings."""
        return cls(**{f.name: settings[f.name] for f in fields(cls) if f.name in settings})


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
    denominators: list[Denominator] = field(default_factory=list)
    zeros: dict[Node, bool] = field(default_factory=dict)  # what `rules.zeros` has found

    def vectors(self) -> Iterator[Tensor]:
        """The labels of all places."""
        yield from (labels for _, labels in self.inputs)
        yield from (count.ids for count in self.counts)
        yield from (place.ids for place in self.sums)
        yield from (place.ids for place in self.denominators)
        for several in (*(p.parts for p in self.equal_parts), *(p.ids for p in self.products)):
            yield from several
        for pick in self.picks:
            yield from (pick.before, pick.after)


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
        """The named argument as a non-negative dim of `x`, or of a tensor of another rank."""
        return int(self.arguments[argument]) % max(len(self.x.shape) if rank is None else rank, 1)

    def dims_but(self, at: int) -> dict[int, int]:
        """Every dim of `x` but one, in its place."""
        return {d: d for d in range(len(self.x.shape)) if d != at}

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
        why = PARAMETRIZED if ".parametrizations." in f".{self.where}" else why
        if labels is not None:
            self.context.labels.freeze(labels, f"{self.name} at {self.where}: {why}")

    def freeze_all(self, why: str) -> Value:
        """Freezes every channel of every tensor argument; returns an output without channels."""
        for value in values(self.arguments):
            for labels in value.axes.values():
                self.freeze(labels, why)
        return Value(self.shape)

    def hold_all(self, why: str) -> Outcome:
        """Freezes every channel of every tensor argument, and of the outputs: what uses those stays for that reason."""
        self.freeze_all(why)
        held = [
            {d: self.context.labels.fresh(s) for d, s in enumerate(shape) if 1 < s <= LARGEST_AXIS}
            for shape in self.out_shapes
        ]
        for axes in held:
            for labels in axes.values():
                self.freeze(labels, why)
        out = tuple(Value(shape, axes) for shape, axes in zip(self.out_shapes, held, strict=True))
        return out if len(out) > 1 else out[0]

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

    def divides(self, labels: Tensor | None, value: int) -> None:
        """Records that the call divides by the number of these channels, and shall go on to divide by `value`."""
        if labels is not None:
            self.context.denominators.append(Denominator(self.node, module_path(self.node)[0], value, labels))

    def width(self, argument: str, labels: Tensor, position: int | None = None) -> None:
        """Records that an integer argument counts the channels of `labels`."""
        holder = self.arguments.get(argument)
        value = holder[position] if position is not None and isinstance(holder, Sequence) else holder
        if value is None and position is None:
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
