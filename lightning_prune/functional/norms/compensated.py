"""Norms whose statistics go on to count channels that are gone, as if those were zero (arXiv 2606.14346).

Zeros add nothing to the sum of C channels and, each, the mean's square to the sum of squared deviations. So with k
channels left and r = k / C, where ``m`` and ``v`` are mean and variance of these k alone,

    mean = r m,    var = r (mean over the k of (x - mean)^2) + (1 - r) mean^2,

both divided by C, which is what the norm of all C channels gives for these k, exactly, and no difference of large
numbers: all terms of the variance are positive. They are operators of a namespace of their own, made of plain ones, so
that an exported graph shows them as one call each and every exporter can take them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SPACE = "lightning_prune"
"""Namespace of the operators."""


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, total: int
) -> Tensor:
    """As `torch.nn.functional.layer_norm` over the last dim, of which ``total - input.shape[-1]`` channels are zero.

    Args:
        input: [..., k]; statistics are computed in float32 at least.
        normalized_shape: (k,), as PyTorch's own takes it.
        weight, bias: [k].
        eps: added to the variance.
        total: channels that the statistics count, at least k.

    Returns:
        [..., k], of the dtype that PyTorch's own gives, under autocast too.
    """
    x = _wide(input)
    out = _centred(x, (-1,), input.shape[-1] / total, eps)
    return _affine(out, weight, bias, _dtype_out(input))


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None, total: int
) -> Tensor:
    """As `torch.nn.functional.rms_norm` over the last dim, counting zeros: see `layer_norm`.

    eps: None is the smallest step of the input's dtype at one.
    """
    x = _wide(input)
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    square = x.square().mean(-1, keepdim=True) * (input.shape[-1] / total)
    return _affine(x * (square + eps).rsqrt(), weight, None, _dtype_out(input))


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, total: int
) -> Tensor:
    """As `torch.nn.functional.group_norm`, each group of which has lost the same number of channels.

    Args:
        input: [N, k, ...].
        num_groups: k is a multiple of it.
        weight, bias: [k].
        eps: added to the variance.
        total: channels that the statistics of all groups count, at least k.
    """
    x = _wide(input)
    lead, channels = input.shape[0], input.shape[1]
    table = x.reshape(lead, num_groups, -1)
    out = _centred(table, (-1,), channels / total, eps).reshape(input.shape)
    view = [channels] + [1] * (input.ndim - 2)
    scale, shift = (None if p is None else p.view(view) for p in (weight, bias))
    return _affine(out, scale, shift, _dtype_out(input))


def _centred(x: Tensor, dims: tuple[int, ...], share: float, eps: float) -> Tensor:
    """(x - mean) / std over dims of which a share is left."""
    mean = x.mean(dims, keepdim=True) * share
    away = x - mean
    var = away.square().mean(dims, keepdim=True) * share + (1 - share) * mean.square()
    return away * (var + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    if weight is not None and bias is not None and weight.dtype == bias.dtype == x.dtype:
        return torch.addcmul(bias, x, weight).to(dtype)  # one pass over x for two
    if weight is not None:
        x = x * weight
    if bias is not None:
        x = x + bias
    return x.to(dtype)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _dtype_out(x: Tensor) -> torch.dtype:
    """Under autocast PyTorch's norms give float32, but on the CPU what came in."""
    kind = x.device.type
    if x.dtype in (torch.float16, torch.bfloat16) and kind != "cpu" and torch.is_autocast_enabled(kind):
        return torch.float32
    return x.dtype


_SCHEMAS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "layer_norm": (
        "(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, int total) -> Tensor",
        layer_norm,
    ),
    "rms_norm": (
        "(Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps, int total) -> Tensor",
        rms_norm,
    ),
    "group_norm": (
        "(Tensor input, int num_groups, Tensor? weight, Tensor? bias, float eps, int total) -> Tensor",
        group_norm,
    ),
}
_LIBRARY = torch.library.Library(SPACE, "DEF")  # has to stay alive
for _name, (_schema, _function) in _SCHEMAS.items():
    _LIBRARY.define(f"{_name}{_schema}")
    _LIBRARY.impl(_name, _function, "CompositeImplicitAutograd")

OPERATORS: dict[str, Any] = {name: getattr(getattr(torch.ops, SPACE), name).default for name in _SCHEMAS}
"""{name of PyTorch's norm: the operator with one more argument, ``total``}"""
