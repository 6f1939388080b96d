"""What the labelling pass knows about one tensor of the graph, and what the rules get to see of one operator call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lightning_prune.channels.labels import Labels

LARGEST_AXIS = 1 << 17
"""A dimension longer than this is never labelled (flattened images, generated weights); it only costs time."""

LARGEST_REGROUP = 1 << 22
"""The largest label tensor that a reshape may materialise."""


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


@dataclass(frozen=True)
class Width:
    """One integer of the graph that counts channels: a split size, a slice bound, a view size, a number of groups.

    Attributes:
        node: the call that holds the integer.
        argument: the argument's name in the operator's schema.
        position: its place when the argument is a list, else None.
        value: the integer while tracing.
        labels: the channels that it counts; after surgery the integer is the number of them that are left.
    """

    node: Node
    argument: str
    position: int | None
    value: int
    labels: Tensor


@dataclass(frozen=True)
class EqualParts:
    """A split into equal parts (`chunk`, `split(size)`): eager code can express it only while the parts stay equal."""

    node: Node
    parts: tuple[Tensor, ...]


@dataclass(frozen=True)
class Site:
    """A place where channels are summed over: `labels` are those of dim `dim` of the call's argument `argument`."""

    node: Node
    argument: str
    dim: int
    labels: Tensor


@dataclass(frozen=True)
class Options:
    """The user's choices that change which channels are tied.

    Attributes:
        groups: "tie" removes the same position from all groups of a grouped conv, "whole" removes whole groups.
        attention: "dims" ties heads and removes the same dimensions from each, "heads" removes whole heads.
        allow_inexact: names of approximations that the user accepts ("eca").
    """

    groups: str = "tie"
    attention: str = "dims"
    allow_inexact: frozenset[str] = frozenset()


@dataclass
class Context:
    """What all rules share: the labels, the options, and the places that the surgery will have to rewrite."""

    labels: Labels
    options: Options
    widths: list[Width] = field(default_factory=list)
    equal_parts: list[EqualParts] = field(default_factory=list)
    approximations: list[str] = field(default_factory=list)
    inputs: list[tuple[str, Tensor]] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    costs: list[tuple[Node, float, list[Tensor]]] = field(default_factory=list)


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
        return next(values(self.arguments))

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

    def consumes(self, argument: str, value: Value, dim: int) -> None:
        """Records that the call sums over the channels in a dim of an argument."""
        if dim in value.axes:
            self.context.sites.append(Site(self.node, argument, dim, value.axes[dim]))

    def costs(self, *labels: Tensor | None, share: float = 1.0) -> None:
        """Records that a share of the call's multiplications is proportional to the channels of each of `labels`."""
        self.context.costs.append((self.node, share, [v for v in labels if v is not None]))

    def width(self, argument: str, labels: Tensor, position: int | None = None) -> None:
        """Records that an integer argument counts the channels of `labels`."""
        holder = self.arguments.get(argument)
        value = holder[position] if position is not None and isinstance(holder, Sequence) else holder
        if value is None:
            return
        # A symbolic size stands in the graph as a node: the count while tracing is the length of the labels.
        number = value if isinstance(value, int) else len(labels)
        self.context.widths.append(Width(self.node, argument, position, number, labels))


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


def matching_groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Splits a reshape into its independent parts: lists of dims with equal products before and after.

    (2, 64, 7, 7) -> (2, 3136) gives [([0], [0]), ([1, 2, 3], [1])]: only what changes has to be looked at.
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        size_left = before[i] if left else 1
        size_right = after[j] if right else 1
        i, j = i + len(left), j + len(right)
        while size_left != size_right:
            if size_left < size_right:
                left.append(i)
                size_left *= before[i]
                i += 1
            else:
                right.append(j)
                size_right *= after[j]
                j += 1
        groups.append((left, right))
    return groups


def tie(context: Context, labels: Tensor, dim: int) -> Tensor:
    """Unites all labels that differ only in dims other than `dim`; returns the vector over `dim`."""
    flat = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
    if flat.shape[1] > 1:
        context.labels.unite(flat[:, 1:], flat[:, :1])
    return flat[:, 0].contiguous()


def varying_dims(context: Context, labels: Tensor) -> list[int]:
    """Returns the dims along which the classes of a label tensor differ."""
    roots = context.labels.find(labels)
    return [d for d in range(roots.ndim) if not torch.equal(roots, roots.narrow(d, 0, 1).expand_as(roots))]


def regroup(call: Call, value: Value, shape: tuple[int, ...]) -> Value:
    """Runs a reshape on the labels themselves.

    Where one labelled dim is split over several (heads x dims, groups x channels), what is left must still be a
    rectangle: the labels are tied over all but one of them.
    """
    context, axes = call.context, dict[int, Tensor]()
    if 0 in value.shape:
        call.freeze_all("reshape of an empty tensor")
        return Value(shape)
    for old, new in matching_groups(value.shape, shape):
        labelled = [d for d in old if d in value.axes]
        if not labelled:
            continue
        if len(labelled) > 1:
            # One element cannot carry two independent labels: the longest axis stays free.
            labelled.sort(key=lambda d: value.shape[d])
            for d in labelled[:-1]:
                call.freeze(value.axes[d], "merged with another channel axis by a reshape")
        axis = labelled[-1]
        old, new = [d for d in old if value.shape[d] > 1], [d for d in new if shape[d] > 1]
        if len(old) == 1 and len(new) == 1:
            axes[new[0]] = value.axes[axis]
            continue
        sizes = [value.shape[d] for d in old]
        if math.prod(sizes) > LARGEST_REGROUP:
            call.freeze(value.axes[axis], "the reshape is too large to follow")
            continue
        spread = value.axes[axis].view([-1 if d == axis else 1 for d in old]).expand(sizes)
        spread = spread.reshape([shape[d] for d in new])
        vary = varying_dims(context, spread)
        if not vary:
            call.freeze(value.axes[axis], "all channels fall into one class")
            continue
        kept = vary[-1]
        if context.options.attention == "heads" and len(vary) > 1:
            kept = vary[-2]  # (.., heads, dims): heads stay free, their dims are tied
        axes[new[kept]] = tie(context, spread, kept)
    return Value(shape, axes)
