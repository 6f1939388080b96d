"""Rules for operators that move elements around: what they do to the elements, they do to the labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lightning_prune.channels.labels import UNLABELLED
from lightning_prune.channels.regroup import regroup
from lightning_prune.channels.rules import padded, rule
from lightning_prune.channels.values import Call, EqualParts, Outcome, Value, values


@rule(
    "view",
    "reshape",
    "_unsafe_view",
    "view_copy",
    "flatten",
    "unflatten",
    "reshape_as",
    "view_as",
    "_reshape_alias",
    "expand_as",
)
def reshape(call: Call) -> Outcome:
    """Runs the reshape on the labels; sizes that count labelled channels are recorded for rewriting."""
    if call.name == "expand_as":
        return expand(call)
    out = regroup(call, call.x, call.shape)
    argument = {"view": "size", "_unsafe_view": "size", "reshape": "shape", "unflatten": "sizes"}.get(call.name)
    if argument is not None:
        offset = call.dim() if call.name == "unflatten" else 0
        for dim, labels in out.axes.items():
            if 0 <= dim - offset < len(call[argument]):
                call.width(argument, labels, dim - offset)
    if call.name in ("reshape_as", "view_as"):
        for dim, labels in call["other"].axes.items():
            if dim in out.axes:
                call.unite(out.axes[dim], labels)
            else:
                call.freeze(labels, "gives its size to a tensor without these channels")
        for dim, labels in out.axes.items():
            if dim not in call["other"].axes:
                call.freeze(labels, "takes its size from a tensor without these channels")
    return out


@rule("permute", "permute_copy")
def permute(call: Call) -> Outcome:
    """Dims change places."""
    order = call.dims("dims")
    return call.keep_axes(call.x, {old: new for new, old in enumerate(order)}, "")


@rule("transpose", "swapaxes", "t", "transpose_copy", "swapdims", "movedim", "numpy_T", "mT", "t_copy")
def transpose(call: Call) -> Outcome:
    """Two dims change places."""
    rank = len(call.x.shape)
    if call.name in ("movedim",):
        source, target = call.dims("source"), call.dims("destination")
        rest = [d for d in range(rank) if d not in source]
        where = dict(zip(source, target, strict=True))
        where.update(zip(rest, [d for d in range(rank) if d not in target], strict=True))
        return call.keep_axes(call.x, where, "")
    if call.name == "numpy_T":
        return call.keep_axes(call.x, {d: rank - 1 - d for d in range(rank)}, "")
    names = {"swapaxes": ("axis0", "axis1")}.get(call.name, ("dim0", "dim1"))
    first, second = (rank - 2, rank - 1) if call.name in ("t", "t_copy", "mT") else [call.dim(n) for n in names]
    where = {d: d for d in range(rank)}
    if rank > 1:
        where[first], where[second] = second, first
    return call.keep_axes(call.x, where, "")


@rule("unsqueeze")
def unsqueeze(call: Call) -> Outcome:
    """A new dim of size 1."""
    rank = len(call.x.shape)
    at = call.dim(rank=rank + 1)
    return call.keep_axes(call.x, {d: d + (d >= at) for d in range(rank)}, "")


@rule("squeeze", "squeeze_copy")
def squeeze(call: Call) -> Outcome:
    """Dims of size 1 go; they never carry labels."""
    x = call.x
    gone = [d for d in call.dims() if x.shape[d] == 1] if "dim" in call.arguments else []
    if "dim" not in call.arguments:
        gone = [d for d, size in enumerate(x.shape) if size == 1]
    rest = [d for d in range(len(x.shape)) if d not in gone]
    return call.keep_axes(x, {old: new for new, old in enumerate(rest)}, "")


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
        call.freeze(labels, "sliced with a step")
    else:
        if start > 0:
            call.width("start", labels[:start])
        if end < size:
            call.width("length" if call.name == "narrow" else "end", labels[:end])
    axes[at] = labels[start:end:step]
    return Value(call.shape, axes)


@rule(
    "split",
    "split_with_sizes",
    "chunk",
    "tensor_split",
    "unsafe_split",
    "unsafe_chunk",
    "split_copy",
    "split_with_sizes_copy",
)
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
        call.context.equal_parts.append(EqualParts(call.node, parts))
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
        if not any(dim in t.axes for t in tensors):
            continue
        if dim == at:
            axes[dim] = torch.cat([padded(t.axes.get(dim), t.shape[dim]) for t in tensors])
        else:
            axes[dim] = padded(tensors[0].axes.get(dim), call.shape[dim])
            for t in tensors[1:]:
                call.unite(axes[dim], padded(t.axes.get(dim), call.shape[dim]))
    return Value(call.shape, axes)


@rule("stack")
def stack(call: Call) -> Outcome:
    """Equal tensors along a new dim: their channels are tied, or the result would not be a rectangle."""
    tensors, at = call["tensors"], call.dim(rank=len(call.shape))
    axes: dict[int, Tensor] = {}
    for dim, size in enumerate(tensors[0].shape):
        if any(dim in t.axes for t in tensors):
            first = padded(tensors[0].axes.get(dim), size)
            for t in tensors[1:]:
                call.unite(first, padded(t.axes.get(dim), size))
            axes[dim + (dim >= at)] = first
    return Value(call.shape, axes)


@rule("expand", "expand_copy", "broadcast_to")
def expand(call: Call) -> Outcome:
    """Dims of size 1 are repeated; labelled dims stay. A size that counts labelled channels is recorded."""
    x, shift = call.x, len(call.shape) - len(call.x.shape)
    out = call.keep_axes(x, {d: d + shift for d in range(len(x.shape))}, "")
    if call.name == "expand_as":
        for dim, labels in call["other"].axes.items():
            if dim in out.axes:
                call.unite(labels, out.axes[dim])
            elif dim - shift < 0 or x.shape[dim - shift] == 1:
                out.axes[dim] = labels  # repeated to the other's width: follows its channels
        return out
    for dim, labels in out.axes.items():
        call.width("size", labels, dim)
    return out


@rule("repeat", "tile")
def repeat(call: Call) -> Outcome:
    """Whole tensor repeated: copies of a channel are one class."""
    x, shift = call.x, len(call.shape) - len(call.x.shape)
    axes = {d + shift: labels.repeat(call.shape[d + shift] // x.shape[d]) for d, labels in x.axes.items()}
    return Value(call.shape, axes)


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Outcome:
    """Each channel repeated in place by one number."""
    x = call.x
    if not isinstance(call.arguments.get("repeats"), int) or call.arguments.get("dim") is None:
        call.freeze_all("repeated by a tensor of counts")
        return Value(call.shape)
    axes = dict(x.axes)
    if call.dim() in axes:
        axes[call.dim()] = axes[call.dim()].repeat_interleave(call["repeats"])
    return Value(call.shape, axes)


@rule("flip")
def flip(call: Call) -> Outcome:
    """Order reversed."""
    flipped = call.dims("dims")
    return Value(call.shape, {d: labels.flip(0) if d in flipped else labels for d, labels in call.x.axes.items()})


@rule("roll")
def roll(call: Call) -> Outcome:
    """A shift along dims; it counts positions, so a labelled dim freezes."""
    rolled = call.dims("dims")
    for dim in rolled:
        call.freeze(call.x.axes.get(dim), "channels shifted by a fixed number")
    return Value(call.shape, {d: labels for d, labels in call.x.axes.items() if d not in rolled})


@rule("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "reflection_pad1d", "replication_pad1d")
def pad(call: Call) -> Outcome:
    """Constant positions before and after; channels that are padded keep their labels, the padding has none."""
    x = call.x
    amounts: list[int] = call["pad" if "pad" in call.arguments else "padding"]
    axes = dict(x.axes)
    for i in range(0, len(amounts), 2):
        dim = len(x.shape) - 1 - i // 2
        before, after = amounts[i], amounts[i + 1]
        if dim not in axes or (before == 0 and after == 0):
            continue
        if call.arguments.get("mode", "constant") != "constant" or call.name[0] == "r" or min(before, after) < 0:
            call.freeze(axes.pop(dim), "channels padded by something else than a constant")
            continue
        ends = torch.full((before,), UNLABELLED), torch.full((after,), UNLABELLED)
        axes[dim] = torch.cat([ends[0], axes[dim], ends[1]])
    return Value(call.shape, axes)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "col2im", "unfold")
def rearrange(call: Call) -> Outcome:
    """Fixed blocks of channels move between the channel dim and space."""
    x = call.x
    if call.name == "unfold" and "size" in call.arguments:  # Tensor.unfold: windows along one dim
        rank, at = len(x.shape), call.dim("dimension")
        return call.keep_axes(x, {d: d for d in range(rank) if d != at}, "windows along the channel dim")
    at = len(x.shape) - 3 if call.name in ("pixel_shuffle", "pixel_unshuffle") else 1
    out = call.keep_axes(x, {d: d for d in range(at)}, "a spatial dim is rearranged") if at not in x.axes else None
    if out is not None:
        return out
    labels = x.axes[at]
    for dim in x.axes:
        if dim > at:
            call.freeze(x.axes[dim], "a spatial dim is rearranged")
    axes = {d: v for d, v in x.axes.items() if d < at}
    if call.name == "channel_shuffle":
        table = labels.view(call["groups"], -1)
        call.unite(table[1:], table[:1])  # the rectangle (groups, channels) must stay one
        axes[at] = table.t().reshape(-1)
    elif call.shape[at] >= x.shape[at]:  # every channel becomes a block of consecutive channels
        axes[at] = labels.repeat_interleave(call.shape[at] // x.shape[at])
    else:  # consecutive channels become one
        table = labels.view(call.shape[at], -1)
        call.unite(table[:, 1:], table[:, :1])
        axes[at] = table[:, 0].contiguous()
    if call.shape[at] == 1:
        call.freeze(axes.pop(at), "only one channel is left")
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
    call.freeze_all("elements are picked by number")
    return Value(call.shape)


def _picked(call: Call, at: int, source: Any) -> Value:
    """Channels picked by numbers: if nothing else reads the constant that holds them, it can be renumbered."""
    context, x = call.context, call.x
    while isinstance(source, Node) and len(source.users) == 1:
        if source in context.constants and at in x.axes:
            numbers = context.constants[source] % x.shape[at]
            after = x.axes[at][numbers.cpu()]
            if len(after) == 1:
                break
            context.picks.append((source.name, numbers, x.axes[at], after))
            return Value(call.shape, {**x.axes, at: after})
        source = source.args[0] if source.target is torch.ops.aten.lift_fresh_copy.default else None
    return call.keep_axes(x, {d: d for d in range(len(x.shape)) if d != at}, "channels picked by number")
