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
from torch.nn import functional as F

from lightning_prune.functional.norms.centred import affine, centred, centred_by_parts, is_followed

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
    gone = total - input.shape[-1]
    if is_followed(input, weight, bias):  # runtimes have a kernel for this norm, and none for its parts
        scale, shift = (None if p is None else F.pad(p, (0, gone)) for p in (weight, bias))
        return F.layer_norm(F.pad(input, (0, gone)), (total,), scale, shift, eps)[..., : input.shape[-1]]
    x = _wide(input)
    scale, shift = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    return centred(x, scale, shift, input.shape[-1] / total, eps).to(_dtype_out(input))


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None, total: int
) -> Tensor:
    """As `torch.nn.functional.rms_norm` over the last dim, counting zeros: see `layer_norm`.

    eps: None is the smallest step of the input's dtype at one.
    """
    share, x = input.shape[-1] / total, _wide(input)
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    # With m the mean of the k squares, x / sqrt(share m + eps) is x / sqrt(m + eps / share) / sqrt(share).
    gain = x.new_ones(input.shape[-1]) if weight is None else weight.to(x.dtype)
    return F.rms_norm(x, (input.shape[-1],), gain * share**-0.5, eps / share).to(_dtype_out(input))


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
    x, channels = _wide(input), input.shape[1]
    rows = x.reshape(input.shape[0], num_groups, -1)
    normalise = centred_by_parts if is_followed(input) else centred
    out = normalise(rows, None, None, channels / total, eps).reshape(input.shape)
    view = [channels] + [1] * (input.ndim - 2)
    scale, shift = (None if p is None else p.to(x.dtype).view(view) for p in (weight, bias))
    return affine(out, scale, shift).to(_dtype_out(input))


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
