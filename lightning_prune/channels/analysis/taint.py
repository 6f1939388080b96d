"""Runs a graph on NaN, so that NaN marks what depends on the network's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

from lightning_prune.channels.graph.propagate import bind, operator_name
from lightning_prune.channels.verify.tensors import LazyRun

CONVOLUTIONS = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}


def taint(value: Tensor, inputs: list[Any]) -> Tensor:
    """Makes an element NaN wherever an element that it was computed from is NaN."""
    for tensor in inputs:
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            value = value.masked_fill(tensor.isnan().broadcast_to(value.shape), torch.nan)
    return value


class NanRun(LazyRun):
    """Runs a graph so that NaN means "depends on the input", and zero times NaN is zero."""

    def __init__(self, graph: Graph, watch: dict[Node, Any]) -> None:
        super().__init__(graph)
        self.watch = watch

    def run_node(self, n: Node) -> Any:
        """Dispatches the operators in which a zero stops NaN."""
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        nested = [i for i, a in enumerate(args) if isinstance(a, GraphModule)]
        if len(nested) == 1:
            return NanRun(args[nested[0]].graph, self.watch).run(*args[nested[0] + 1 :])
        name = operator_name(n.target)
        if name.startswith("_assert") or name == "sym_constrain_range_for_size":
            return None
        bound = bind(n.target, args, kwargs)
        if n in self.watch:
            self.watch[n](bound)
        if name in ("batch_norm", "instance_norm") and isinstance(bound.get("weight"), Tensor):
            return _batch_norm(super().run_node(n), bound["weight"], bound.get("bias"))
        if name in CONVOLUTIONS or name in ("linear", "matmul", "bmm", "mm"):
            return _product(n.target, bound)
        out = super().run_node(n)
        if isinstance(out, Tensor) and torch.Tag.pointwise in getattr(n.target, "tags", ()) and out.is_floating_point():
            out = taint(out, list(bound.values()))
            if name == "mul":
                for factor in (t for t in bound.values() if isinstance(t, Tensor)):
                    out = out.masked_fill((factor == 0).broadcast_to(out.shape), 0)
        return out


def _batch_norm(out: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    view = [1, -1] + [1] * (out.ndim - 2)
    beta = torch.zeros_like(weight) if bias is None else bias
    return torch.where((weight == 0).view(view), beta.view(view), out)


def _product(target: Any, bound: dict[str, Any]) -> Tensor:
    """A sum of products in which zero times NaN is zero."""
    pairs = (("input", "weight"), ("self", "other"), ("self", "mat2"), ("tensor1", "tensor2"))
    keys = next(pair for pair in pairs if all(k in bound for k in pair))
    clean = {k: v.nan_to_num(0.0) if k in keys else v for k, v in bound.items()}
    out: Tensor = target(**clean)
    unknown = {k: bound[k].isnan() for k in keys}
    if not any(bool(u.any()) for u in unknown.values()):
        return out
    reach = torch.zeros_like(out)
    for k in keys:  # where an unknown factor meets a factor that is not zero (or is unknown itself)
        other = keys[1 - keys.index(k)]
        present = (bound[other] != 0).to(out.dtype)
        mixed = {**bound, k: unknown[k].to(out.dtype), other: present}
        if "bias" in mixed:
            mixed["bias"] = None
        reach = reach + target(**mixed)
    return out.masked_fill(reach > 0.5, torch.nan)
