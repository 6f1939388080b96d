"""Rules for operators that move elements around: what they do to the elements, they do to the labels."""

from __future__ import annotations

import torch

from lightning_prune.channels.rules.registry import rule
from lightning_prune.channels.rules.reshape import regroup
from lightning_prune.channels.trace.call import Call, Outcome, Value
from lightning_prune.channels.trace.labels import UNLABELLED


@rule("view", "reshape", "_unsafe_view", "view_copy", "flatten", "unflatten", "reshape_as", "view_as",
      "_reshape_alias", "expand_as")  # fmt: skip
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
    if call.name == "movedim":
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
    gone = [d for d in call.dims() if x.shape[d] == 1]
    rest = [d for d in range(len(x.shape)) if d not in gone]
    return call.keep_axes(x, {old: new for new, old in enumerate(rest)}, "")


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
    """Whole tensor repeated: copies of a channel are one channel group."""
    x, shift = call.x, len(call.shape) - len(call.x.shape)
    axes = {d + shift: labels.repeat(call.shape[d + shift] // x.shape[d]) for d, labels in x.axes.items()}
    return Value(call.shape, axes)


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Outcome:
    """Each channel repeated in place by one number."""
    x = call.x
    if not isinstance(call.arguments.get("repeats"), int) or call.arguments.get("dim") is None:
        return call.freeze_all("repeated by a tensor of counts")
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
        at = call.dim("dimension")
        return call.keep_axes(x, call.dims_but(at), "windows along the channel dim")
    at = len(x.shape) - 3 if call.name in ("pixel_shuffle", "pixel_unshuffle") else 1
    if at not in x.axes:
        return call.keep_axes(x, {d: d for d in range(at)}, "a spatial dim is rearranged")
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
