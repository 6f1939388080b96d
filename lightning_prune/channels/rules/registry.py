"""The table of operator rules, and the rules for operators that act on each element alone.

A rule takes a `Call` and returns the labels of its outputs. It unites labels of channels that are removed together,
freezes what it cannot follow, and never guesses. An operator without a rule freezes its arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_prune.channels.trace.call import Call, Outcome, Rule, Value, values
from lightning_prune.channels.trace.labels import UNLABELLED

RULES: dict[str, Rule] = {}
"""{operator name without overload, for example "conv2d": its rule}. In-place variants share the rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for the operators `names`."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for operator {name!r}")
            RULES[name] = function
        return function

    return register


def padded(labels: Tensor | None, size: int) -> Tensor:
    """Returns the labels of a dim, or unlabelled positions where it has none."""
    return torch.full((size,), UNLABELLED) if labels is None else labels


def elementwise(call: Call) -> Outcome:
    """Arguments broadcast against each other: channels at the same place are one channel group."""
    operands = [(value, len(value.shape)) for value in values(call.arguments)]
    axes = broadcast(call, operands, len(call.shape))
    for value, rank in operands:  # an in-place result smaller than an operand would lose axes unnoticed
        for dim, labels in value.axes.items():
            if dim + len(call.shape) - rank not in axes:
                call.freeze(labels, "lost by broadcasting")
    return Value(call.shape, axes)


def broadcast(call: Call, operands: list[tuple[Value, int]], rank: int) -> dict[int, Tensor]:
    """The axes of the first `rank` dims of an output over which operands, (value, its leading dims), broadcast."""
    axes: dict[int, Tensor] = {}
    for dim in range(rank):
        places = [(value, dim - rank + leading) for value, leading in operands]
        wide = [value.axes.get(d) for value, d in places if d >= 0 and value.shape[d] == call.shape[dim] > 1]
        labelled = [labels for labels in wide if labels is not None]
        if not labelled:
            continue
        axes[dim] = labelled[0]
        for labels in labelled[1:]:
            call.unite(labelled[0], labels)
        if len(labelled) < len(wide):
            call.freeze(labelled[0], "combined with a tensor whose channels no parameter controls")
    return axes


rule("dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy",
     "type_as", "zeros_like", "ones_like", "copy", "lift_fresh_copy", "lift_fresh", "masked_fill", "where",
     "view_as_real_copy", "nan_to_num", "rand_like", "randn_like", "full_like", "bernoulli", "empty_like",
     "rrelu", "hardsigmoid", "hardswish", "prelu_elementwise")(elementwise)  # fmt: skip


@rule("new_zeros", "new_ones", "new_full", "new_empty")
def made(call: Call) -> Outcome:
    """A tensor of its own, of which the argument only says dtype and device: it has no channels."""
    return Value(call.shape)


@rule("prelu")
def prelu(call: Call) -> Outcome:
    """The slope is one number, or one for each channel of dim 1."""
    x, weight = call["self"], call["weight"]
    if 0 in weight.axes:
        if 1 in x.axes:
            call.unite(x.axes[1], weight.axes[0])
        else:
            call.freeze(weight.axes[0], "the input's channels are not controlled by a parameter")
    elif 1 in x.axes and weight.shape and weight.shape[0] > 1:
        call.freeze(x.axes[1], "slope without labels")
    return Value(call.shape, dict(x.axes))


@rule("glu")
def glu(call: Call) -> Outcome:
    """The first half times the gate of the second half."""
    x, dim = call.x, call.dim()
    axes = dict(x.axes)
    if dim in axes:
        first, second = axes[dim].chunk(2)
        call.unite(first, second)
        axes[dim] = first
    return Value(call.shape, axes)
