"""Whether the channels that go are zero in some value of the masked network, in which all that writes them is zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lightning_prune.channels.rules.registry import RULES
from lightning_prune.channels.trace.call import Call, Value
from lightning_prune.channels.trace.labels import FROZEN_IDS

_ANY = 0.7  # stands for a value that is not zero
_WRITERS = ("conv", "linear", "batch_norm", "instance_norm", "embedding")  # their rows, shifts and columns are zero
_ELEMENTS = ("dropout", "prelu", "contiguous", "clone", "to", "_to_copy", "alias", "detach")
_NORMS = ("layer_norm", "group_norm")
_LINEAR = (  # sums of zeros, beside whatever only moves them
    "mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "matmul", "bmm", "mm", "normalize", "rms_norm",
)  # fmt: skip


def comes_to_zero(value: Any, known: dict[Node, bool]) -> bool:
    """Whether the channels that go are zero in an argument of a call; False where it cannot be told.

    known: what was found of other values, which this adds to; parameters and buffers stand in it from the start.
    """
    if not isinstance(value, Node):
        return False
    stack = [value]
    while stack:
        top = stack[-1]
        missing = [a for a in _asked(top) if a not in known]
        if missing:
            stack += missing
            continue
        known[top] = _answer(top, known)
        stack.pop()
    return known[value]


def adds_beside(call: Call, x: Value, own: int) -> None:
    """Notes a call that adds a vector along the dim `own`: what was zero along another channel dim is so no more."""
    labels = call.context.labels
    beside = (v for d, v in x.axes.items() if d != own)
    if any(bool((labels.find(v) >= FROZEN_IDS).any()) for v in beside):
        call.context.zeros[call.node] = False


def _answer(node: Node, known: dict[Node, bool]) -> bool:
    if node.op != "call_function":
        return False
    name = _name(node)
    if name.startswith(_WRITERS):
        return True
    if name in _NORMS:  # they leave -mean / std, times a scale factor of zero
        return any(_is_tensor(a) for a in node.all_input_nodes[1:])
    asked = _asked(node)
    if _is_pointwise(node):
        return _at_zero(node, known)
    return bool(asked) and all(known[a] for a in asked)


def _at_zero(node: Node, known: dict[Node, bool]) -> bool:
    """Runs a call that acts on each element alone."""

    def value(n: Node) -> Any:
        meta = n.meta.get("val")
        if not isinstance(meta, Tensor):
            return meta
        filled = 0.0 if known[n] else _ANY
        return torch.full((1,) * max(meta.ndim, 1), filled, dtype=torch.float64).to(meta.dtype)

    try:
        args, kwargs = torch.fx.map_arg(node.args, value), torch.fx.map_arg(node.kwargs, value)
        out = node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # an operator that wants more than that
        return False
    return isinstance(out, Tensor) and bool((out == 0).all())


def _asked(node: Node) -> list[Node]:
    """The inputs of a call that decide."""
    name = _name(node) if node.op == "call_function" else ""
    if node.op != "call_function" or name.startswith(_WRITERS) or name in _NORMS:
        return []
    tensors = [a for a in node.all_input_nodes if _is_tensor(a)]
    if _is_pointwise(node):
        return tensors
    if name == "rms_norm":
        return tensors[:1]
    if name == "getitem":
        return list(node.all_input_nodes[:1])
    rule = RULES.get(name)
    moved = rule is not None and rule.__module__.rpartition(".")[2] in ("move", "parts")
    if moved and name in ("pad", "constant_pad_nd") and any(a for a in node.args[2:] if isinstance(a, float)):
        return []
    return tensors if moved or name in _LINEAR else []


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    name = str(schema.name if schema is not None else getattr(node.target, "__name__", node.target))
    return name.rpartition("::")[2].rstrip("_")


def _is_pointwise(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or _name(node) in _ELEMENTS


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)
