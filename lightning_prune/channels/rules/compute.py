"""Rules for operators that sum over channels: convolutions, products, attention."""

from __future__ import annotations

from torch import Tensor

from lightning_prune.channels.rules.registry import broadcast, elementwise, rule
from lightning_prune.channels.rules.zeros import adds_beside
from lightning_prune.channels.trace.call import Call, Outcome, Value
from lightning_prune.channels.trace.sites import Sum

SCALED = "the default scale depends on the number of dims in a head"
KERNEL_DIM = "a spatial or kernel dim"
COMPUTED = "the weight is computed while running (as in CondConv) or constant: no parameter has its channels"


def _spatial(call: Call, x: Value, weight: Value) -> None:
    """Freezes labelled dims that a kernel or a window slides over, and the kernel's own dims."""
    for dim, labels in x.axes.items():
        if dim >= 2:
            call.freeze(labels, "the operator mixes neighbouring channels")
    for dim, labels in weight.axes.items():
        if dim >= 2:
            call.context.labels.freeze(labels, KERNEL_DIM)


def meet(call: Call, x: Tensor | None, weight: Tensor | None) -> None:
    """The consumed channels of the input and the weight's input dim are the same channels."""
    if x is not None and weight is not None:
        call.unite(x, weight)
    else:
        call.freeze(x, COMPUTED)
        call.freeze(weight, "consumes the network's input or an uncontrolled tensor")


def _bias(call: Call, out: Tensor | None) -> None:
    bias = call.arguments.get("bias")
    if isinstance(bias, Value) and bias.shape:
        meet(call, out, bias.axes.get(0))


@rule("conv1d", "conv2d", "conv3d", "convolution")
def conv(call: Call) -> Outcome:
    """Input channels meet dim 1 of the weight, output channels are dim 0; groups need more care."""
    x, weight, groups = call["input"], call["weight"], call["groups"]
    if len(x.shape) != len(weight.shape) or call.arguments.get("transposed"):
        return call.freeze_all("convolution without a batch dim, or transposed")
    if eca := _eca(call, x, weight):
        return eca
    _spatial(call, x, weight)
    inputs, rows = x.axes.get(1), weight.axes.get(0)
    call.costs(rows, weight.axes.get(1))
    if weight.shape[1] > 1:
        call.consumes("input", x, 1)
    if groups == 1:
        meet(call, inputs, weight.axes.get(1))
    elif isinstance(groups, int):
        rows = _grouped(call, inputs, weight, groups)
    else:
        call.freeze_all("symbolic number of groups")
        rows = None
    _bias(call, rows)
    axes = {d: labels for d, labels in x.axes.items() if d == 0}
    return Value(call.shape, axes if rows is None or call.shape[1] == 1 else {**axes, 1: rows})


def _grouped(call: Call, inputs: Tensor | None, weight: Value, groups: int) -> Tensor | None:
    """Labels for a grouped convolution, after which every group is still equally large."""
    rows = weight.axes.get(0)
    columns = weight.axes.get(1)
    if inputs is None or rows is None:
        call.freeze(inputs, COMPUTED)
        call.freeze(rows, "a grouped convolution over uncontrolled channels")
        call.freeze(columns, "a grouped convolution over uncontrolled channels")
        return rows
    in_table, out_table = inputs.view(groups, -1), rows.view(groups, -1)
    if in_table.shape[1] == 1:  # depthwise, with any multiplier: a group is a channel
        call.unite(out_table, in_table)
        call.width("groups", inputs)
        return rows
    if call.context.options.groups == "whole":
        call.unite(in_table, in_table[:, :1])
        call.unite(out_table, in_table[:, :1])
        call.freeze(columns, "whole groups are removed, so their inner width stays")
        call.width("groups", in_table[:, 0].contiguous())
        return rows
    call.unite(in_table, in_table[:1])
    call.unite(out_table, out_table[:1])
    meet(call, in_table[0], columns)
    return rows


def _eca(call: Call, x: Value, weight: Value) -> Value | None:
    """A convolution along the channels (ECA): never exact once neighbours change, allowed only on request."""
    if "eca" not in call.context.options.allow_inexact or len(x.shape) != 3 or 2 not in x.axes:
        return None
    if weight.shape[:2] != (1, 1) or call.shape != x.shape:
        return None
    for labels in weight.axes.values():
        call.context.labels.freeze(labels, KERNEL_DIM)
    call.context.approximations.append(f"eca at {call.where}: neighbouring channels change")
    return Value(call.shape, dict(x.axes))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(call: Call) -> Outcome:
    """As a convolution with dims 0 and 1 of the weight swapped."""
    x, weight, groups = call["input"], call["weight"], call["groups"]
    _spatial(call, x, weight)
    columns, rows, inputs = weight.axes.get(0), weight.axes.get(1), x.axes.get(1)
    if weight.shape[0] > groups:
        call.consumes("input", x, 1)
    call.costs(columns, rows)
    meet(call, inputs, columns)
    if groups > 1:
        rows = _grouped_transpose(call, inputs, weight, groups)
    _bias(call, rows)
    axes = {d: labels for d, labels in x.axes.items() if d == 0}
    return Value(call.shape, axes if rows is None else {**axes, 1: rows})


def _grouped_transpose(call: Call, inputs: Tensor | None, weight: Value, groups: int) -> Tensor | None:
    """Labels of the outputs; dim 1 of the weight has those of one group only, for all groups."""
    rows, size = weight.axes.get(1), weight.shape[1]
    if inputs is None:
        call.freeze(rows, "a grouped convolution over uncontrolled channels")
        return None
    table = inputs.view(groups, -1)
    if table.shape[1] == 1 or call.context.options.groups == "whole":
        call.unite(table, table[:, :1])
        call.freeze(rows, "whole groups are removed, so their inner width stays")
        call.width("groups", table[:, 0].contiguous())
        return table[:, 0].repeat_interleave(size)
    call.unite(table, table[:1])
    return None if rows is None else rows.repeat(groups)


@rule("linear")
def linear(call: Call) -> Outcome:
    """The last dim meets dim 1 of the weight."""
    x, weight = call["input"], call["weight"]
    last = len(x.shape) - 1
    call.consumes("input", x, last)
    call.costs(*weight.axes.values())
    meet(call, x.axes.get(last), weight.axes.get(1) if len(weight.shape) > 1 else weight.axes.get(0))
    rows = weight.axes.get(0) if len(weight.shape) > 1 else None
    _bias(call, rows)
    if isinstance(call.arguments.get("bias"), Value):
        adds_beside(call, x, last)
    axes = {d: labels for d, labels in x.axes.items() if d != last}
    return Value(call.shape, axes if rows is None else {**axes, last: rows})


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(call: Call) -> Outcome:
    """Contracts the last dim of the first with the last but one of the second; leading dims broadcast."""
    left, right = _operands(call)
    first, second = call[left], call[right]
    if len(first.shape) < 2 or len(second.shape) < 2:
        return call.freeze_all("product with a vector")
    a, b = len(first.shape), len(second.shape)
    call.consumes(left, first, a - 1)
    call.consumes(right, second, b - 2)
    return Value(call.shape, _product_axes(call, first, second))


def _product_axes(call: Call, first: Value, second: Value) -> dict[int, Tensor]:
    """The axes of a batched product, with the contracted channels united."""
    a, b, rank = len(first.shape), len(second.shape), len(call.shape)
    _meet_products(call, first.axes.get(a - 1), second.axes.get(b - 2))
    axes = broadcast(call, [(first, a - 2), (second, b - 2)], rank - 2)
    for value, dim, place in ((first, a - 2, rank - 2), (second, b - 1, rank - 1)):
        if dim in value.axes:
            axes[place] = value.axes[dim]
    call.costs(first.axes.get(a - 1), *axes.values())
    return axes


def _operands(call: Call) -> tuple[str, str]:
    """The names of the two factors in the schema."""
    left = next(n for n in ("self", "tensor", "input") if n in call.arguments)
    right = next(n for n in ("other", "mat2", "tensor", "vec") if n in call.arguments and n != left)
    return left, right


def _meet_products(call: Call, first: Tensor | None, second: Tensor | None) -> None:
    if first is not None and second is not None:
        call.unite(first, second)
    else:
        for labels in (first, second):
            call.freeze(labels, "multiplied with a tensor whose channels no parameter controls")


@rule("addmm", "baddbmm")
def addmm(call: Call) -> Outcome:
    """A product plus a broadcast summand."""
    names = ("mat1", "mat2") if "mat1" in call.arguments else ("batch1", "batch2")
    first, second = (call[name] for name in names)
    product = Value(call.shape, _product_axes(call, first, second))
    call.consumes(names[0], first, len(first.shape) - 1)
    call.arguments = {"product": product, "summand": call["self"]}
    return elementwise(call)


@rule("einsum")
def einsum(call: Call) -> Outcome:
    """One channel group for each letter and place; a letter that is summed in only one operand freezes."""
    left, _, right = call["equation"].replace(" ", "").partition("->")
    terms, tensors = left.split(","), call["tensors"]
    if "." in left or not right or any(len(set(t)) < len(t) for t in [*terms, right]):
        return call.freeze_all("einsum with an ellipsis, a diagonal or an implicit output")
    letters: dict[str, list[Tensor | None]] = {}
    for term, value in zip(terms, tensors, strict=True):
        for dim, letter in enumerate(term):
            if value.shape[dim] > 1:
                letters.setdefault(letter, []).append(value.axes.get(dim))
    axes: dict[int, Tensor] = {}
    call.costs(*(next((v for v in found if v is not None), None) for found in letters.values()))
    for letter, found in letters.items():
        labelled = [labels for labels in found if labels is not None]
        if not labelled:
            continue
        for labels in labelled[1:]:
            call.unite(labelled[0], labels)
        if len(labelled) < len(found):
            call.freeze(labelled[0], "multiplied with a tensor whose channels no parameter controls")
        if letter in right:
            axes[right.index(letter)] = labelled[0]
        elif len(found) == 1 or len(terms) > 2:
            call.freeze(labelled[0], "summed over the channels")
        else:
            for position, term in enumerate(terms):
                if letter in term:
                    call.context.sums.append(Sum(call.node, f"tensors.{position}", term.index(letter), labelled[0]))
    return Value(call.shape, axes)


@rule("scaled_dot_product_attention", "_scaled_dot_product_attention_math")
def attention(call: Call) -> Outcome:
    """Heads as batch dims; queries and keys share their dims; those may shrink if the scale stays what it was."""
    q, k, v = call["query"], call["key"], call["value"]
    rank = len(q.shape)
    mask = call.arguments.get("attn_mask")
    call.consumes("query", q, rank - 1)
    call.consumes("key", k, rank - 1)
    _meet_products(call, q.axes.get(rank - 1), k.axes.get(rank - 1))
    if call.arguments.get("scale") is None:
        if call.context.options.norms == "exact":
            call.divides(q.axes.get(rank - 1), q.shape[-1])
        else:
            for value in (q, k):
                call.freeze(value.axes.get(rank - 1), SCALED)
    _meet_products(call, k.axes.get(rank - 2), v.axes.get(rank - 2))
    for value in (k, v):
        call.freeze(value.axes.get(rank - 2), "softmax over these positions")
    if call.arguments.get("enable_gqa"):
        for value in (q, k, v):
            call.freeze(value.axes.get(rank - 3), "grouped query attention")
    operands = [(q, rank - 2), (k, rank - 2), (v, rank - 2)]
    if isinstance(mask, Value):
        operands.append((mask, len(mask.shape) - 2))
        for dim in (len(mask.shape) - 1, len(mask.shape) - 2):
            call.freeze(mask.axes.get(dim), "attention mask over positions")
    axes = broadcast(call, operands, rank - 2)
    share = q.shape[-1] / (q.shape[-1] + v.shape[-1])
    call.costs(*axes.values(), q.axes.get(rank - 1), share=share)
    call.costs(*axes.values(), v.axes.get(rank - 1), share=1 - share)
    for value, dim in ((q, rank - 2), (v, rank - 1)):
        if dim in value.axes:
            axes[dim] = value.axes[dim]
    return Value(call.shape, axes)
