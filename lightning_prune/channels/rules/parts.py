"""Rules for operators that take parts out of a dim, or put a dim together from parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lightning_prune.channels.rules.registry import padded, rule
from lightning_prune.channels.trace.call import Call, Outcome, Value, values
from lightning_prune.channels.trace.sites import Parts, Pick

STEPPED = "sliced with a step"  # rotary positions do, in each head
_LIFTS = (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default)


@rule("select", "select_copy")
def select(call: Call) -> Outcome:
    """One entry of a dim: its index counts positions, so that dim cannot be shortened."""
    at, rank = call.dim(), len(call.x.shape)
    return call.keep_axes(call.x, {d: d - (d > at) for d in range(rank) if d != at}, "one channel picked by its number")


@rule("unbind", "unbind_copy")
def unbind(call: Call) -> Outcome:
    """All entries of a dim, one tensor each."""
    at, rank = call.dim(), len(call.x.shape)
    where = {d: d - (d > at) for d in range(rank) if d != at}
    return tuple(call.keep_axes(call.x, where, "channels unbound one by one", s) for s in call.out_shapes)


@rule("slice", "slice_copy", "narrow")
def slice_(call: Call) -> Outcome:
    """A range of a dim. Its bounds count channels from the left."""
    x, at = call.x, call.dim()
    if at not in x.axes or call.shape == x.shape:
        return Value(call.shape, dict(x.axes))
    labels, size = x.axes[at], x.shape[at]
    if call.name == "narrow":
        start, end, step = call["start"], call["start"] + call["length"], 1
    else:
        start, end, step = call["start"] or 0, call["end"], call["step"]
        end = size if end is None else end
    start, end = (min(max(b + size if b < 0 else b, 0), size) for b in (start, end))
    axes = dict(x.axes)
    if step != 1 or (call.name == "narrow" and start):
        call.freeze(labels, STEPPED)
    else:
        if start > 0:
            call.width("start", labels[:start])
        if end < size:
            call.width("length" if call.name == "narrow" else "end", labels[:end])
    axes[at] = labels[start:end:step]
    if len(axes[at]) == 1:  # without it nothing is left to broadcast over what it gates
        call.freeze(axes.pop(at), "sliced into single channels")
    return Value(call.shape, axes)


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy",
      "split_with_sizes_copy")  # fmt: skip
def split(call: Call) -> Outcome:
    """Consecutive parts of a dim. Equal parts stay equal, or the call has to be rewritten."""
    x, at = call.x, call.dim()
    if at not in x.axes:
        return tuple(Value(shape, dict(x.axes)) for shape in call.out_shapes)
    parts = x.axes[at].split([shape[at] for shape in call.out_shapes])
    listed = next((a for a in ("split_sizes", "split_size") if isinstance(call.arguments.get(a), (list, tuple))), None)
    if listed:
        for position, part in enumerate(parts):
            call.width(listed, part, position)
    elif call.name == "tensor_split":
        call.freeze(x.axes[at], "split at fixed places")
    else:
        if "split_size" in call.arguments:
            call.width("split_size", parts[0])
        if len({len(part) for part in parts}) > 1:
            call.freeze(x.axes[at], "split into parts of unequal size by one number")
        call.context.equal_parts.append(Parts(call.node, parts))
    out = []
    for shape, part in zip(call.out_shapes, parts, strict=True):
        axes = {d: labels for d, labels in x.axes.items() if d != at}
        if len(part) > 1:
            axes[at] = part
        else:
            call.freeze(part, "split into single channels")
        out.append(Value(shape, axes))
    return tuple(out)


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Outcome:
    """Channels one after the other; all other dims are element by element."""
    tensors = [t for t in call["tensors"] if t.shape != (0,)]
    rank = len(call.shape)
    at = call.dim(rank=rank)
    axes: dict[int, Tensor] = {}
    for dim in range(rank):
        if any(dim in t.axes for t in tensors):
            vectors = [padded(t.axes.get(dim), t.shape[dim]) for t in tensors]
            axes[dim] = torch.cat(vectors) if dim == at else _united(call, vectors)
    return Value(call.shape, axes)


def _united(call: Call, vectors: list[Tensor]) -> Tensor:
    for labels in vectors[1:]:
        call.unite(vectors[0], labels)
    return vectors[0]


@rule("stack")
def stack(call: Call) -> Outcome:
    """Equal tensors along a new dim: their channels are tied, or the result would not be a rectangle."""
    tensors, at = call["tensors"], call.dim(rank=len(call.shape))
    axes: dict[int, Tensor] = {}
    for dim, size in enumerate(tensors[0].shape):
        if any(dim in t.axes for t in tensors):
            axes[dim + (dim >= at)] = _united(call, [padded(t.axes.get(dim), size) for t in tensors])
    return Value(call.shape, axes)


@rule("index", "index_select", "gather", "take_along_dim", "_unsafe_index", "embedding")
def index(call: Call) -> Outcome:
    """Positions are picked along some dims: those freeze unless constant, the others pass where they stay in place."""
    x = call.x
    if call.name == "embedding":
        weight = call["weight"]
        return call.keep_axes(weight, {1: len(call.shape) - 1}, "rows are picked by number")
    if call.name == "index_select":
        return _picked(call, call.dim(), call.node.args[2])
    if call.name in ("index", "_unsafe_index"):
        indices = call["indices"]
        picked = [d for d, i in enumerate(indices) if i is not None]
        if len(picked) == 1 and len(indices[picked[0]].shape) == 1 and not indices[picked[0]].axes:
            return _picked(call, picked[0], call.node.args[1][picked[0]])  # type: ignore[index]
        if (
            picked
            and picked == list(range(picked[0], picked[-1] + 1))
            and not any(v.axes for v in values([i for i in indices if i is not None]))
        ):
            grown = len(call.shape) - (len(x.shape) - len(picked))
            where = {d: d if d < picked[0] else d - len(picked) + grown for d in range(len(x.shape)) if d not in picked}
            return call.keep_axes(x, where, "channels picked by number")
    return call.freeze_all("elements are picked by number")


def _picked(call: Call, at: int, source: Any) -> Value:
    """Channels picked by numbers: if nothing else reads the constant that holds them, it can be renumbered."""
    context, x = call.context, call.x
    while isinstance(source, Node) and len(source.users) == 1:
        if source in context.constants and at in x.axes:
            numbers = context.constants[source] % x.shape[at]
            after = x.axes[at][numbers.cpu()]
            if len(after) == 1:
                break
            context.picks.append(Pick(source.name, numbers, x.axes[at], after))
            return Value(call.shape, {**x.axes, at: after})
        source = source.args[0] if source.target in _LIFTS else None
    return call.keep_axes(x, call.dims_but(at), "channels picked by number")
