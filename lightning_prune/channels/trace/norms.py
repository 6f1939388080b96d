"""Norms on the fast way through a trace.

PyTorch works out the shape that comes out of a norm by running its decomposition, ten calls or so, on fake tensors,
which is up to a third of a trace. But what comes out is like what went in. So while a network is traced, its norms in
eval mode are calls of operators of ours, which say just that, and after it they are PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

_SPACE = "lightning_prune_trace"
_NORMS = {"batch_norm": torch.ops.aten.batch_norm.default, "layer_norm": torch.ops.aten.layer_norm.default}


def _shape_of_batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, *_: Any) -> Tensor:
    if x.shape[1] != mean.shape[0]:
        raise RuntimeError(f"running_mean should contain {x.shape[1]} elements not {mean.shape[0]}")
    return torch.empty_like(x)


def _shape_of_layer_norm(x: Tensor, normalized_shape: Sequence[int], *_: Any) -> Tensor:
    if list(x.shape[len(x.shape) - len(normalized_shape) :]) != list(normalized_shape):
        raise RuntimeError(f"layer_norm over {list(normalized_shape)} got an input of shape {list(x.shape)}")
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_SHAPES: dict[str, Callable[..., Tensor]] = {"batch_norm": _shape_of_batch_norm, "layer_norm": _shape_of_layer_norm}


@cache
def _operators() -> tuple[torch.library.Library, dict[str, Any]]:
    """The library, which has to stay alive, and its operators by name; each has the schema of PyTorch's own."""
    library = torch.library.Library(_SPACE, "DEF")
    for name, own in _NORMS.items():
        library.define(str(own._schema).removeprefix("aten::"))
        library.impl(name, _SHAPES[name], "Meta")
    return library, {name: getattr(getattr(torch.ops, _SPACE), name).default for name in _NORMS}


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As `F.batch_norm`. In train mode it writes statistics, and PyTorch's own does that."""
    if training or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    call = _operators()[1]["batch_norm"]
    out: Tensor = call(
        input, weight, bias, running_mean, running_var, False, momentum, eps, torch.backends.cudnn.enabled
    )
    return out


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As `F.layer_norm`."""
    call = _operators()[1]["layer_norm"]
    out: Tensor = call(input, normalized_shape, weight, bias, eps, torch.backends.cudnn.enabled)
    return out


_OURS: dict[Any, Callable[..., Tensor]] = {F.batch_norm: _batch_norm, F.layer_norm: _layer_norm}


class FastNorms(TorchFunctionMode):
    """Inside, an export has operators of ours for norms in eval mode; `usual_norms` takes them out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _OURS.get(func, func)(*args, **(kwargs or {}))


def usual_norms(program: ExportedProgram) -> ExportedProgram:
    """PyTorch's own operators in place of ours, nested graphs included; the program itself."""
    own = {call: _NORMS[name] for name, call in _operators()[1].items()}
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function" and node.target in own:
                    node.target = own[node.target]
    return program
