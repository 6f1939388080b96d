"""Reshapes, run on the labels themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import Node

from lightning_prune.channels.trace.call import Call, Value

LARGEST_REGROUP = 1 << 22  # of label tensors that a reshape may materialise
_ON_MAPS = ("aten::conv", "aten::batch_norm", "aten::group_norm", "aten::upsample", "aten::max_pool", "aten::avg_pool")
_FOLLOWED = 16  # calls, from a reshape on


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
        if context.options.attention == "heads" and len(value.shape) == 3 and [shape[d] for d in new[:-1]] == [1]:
            call.freeze(value.axes[axis], "the only head there is, which goes as a whole or not at all")
            continue
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
        roots = context.labels.find(spread)
        vary = [d for d in range(roots.ndim) if not torch.equal(roots, roots.narrow(d, 0, 1).expand_as(roots))]
        if not vary:
            call.freeze(value.axes[axis], "all channels fall into one group")
            continue
        kept = vary[0] if new[vary[0]] == 1 and _becomes_a_map(call.node) else vary[-1]
        if context.options.attention == "heads" and len(vary) > 1:
            kept = vary[-2]  # (.., heads, dims): heads stay free, their dims are tied
        flat = spread.movedim(kept, 0).reshape(spread.shape[kept], -1)  # labels that differ only in other dims are tied
        context.labels.unite(flat[:, 1:], flat[:, :1])
        axes[new[kept]] = flat[:, 0].contiguous()
    return Value(shape, axes)


def _becomes_a_map(node: Node) -> bool:
    """Whether what a call gives comes, element by element, to a layer that has its channels in dim 1."""
    ahead = list(node.users)
    for user in ahead:
        name = str(getattr(getattr(user.target, "_schema", None), "name", ""))
        if name.startswith(_ON_MAPS):
            return True
        if torch.Tag.pointwise in getattr(user.target, "tags", ()) and len(ahead) < _FOLLOWED:
            ahead += [after for after in user.users if after not in ahead]
    return False
