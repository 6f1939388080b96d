"""What comes out of the calls that networks are mostly made of, without running them on fake tensors.

A fake tensor's answer takes some tenths of a millisecond, several times as long as all else that is done about a call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

from lightning_prune.support.tensors import is_channels_last

_ATEN = torch.ops.aten

_LIKE = {
    getattr(_ATEN, name).default
    for name in ("relu", "relu_", "silu", "silu_", "sigmoid", "sigmoid_", "gelu", "tanh", "tanh_", "hardswish",
                 "hardswish_", "hardsigmoid", "hardsigmoid_", "leaky_relu", "leaky_relu_", "mish", "mish_")
}  # fmt: skip
"""Functions of one tensor, element by element."""

_PAIRS = {getattr(_ATEN, name).Tensor for name in ("add", "add_", "mul", "mul_", "sub", "sub_")}
"""Functions of two tensors, element by element."""


def made(fake: FakeTensorMode, shape: Any, stride: Any, dtype: torch.dtype, device: torch.device) -> FakeTensor:
    """A fake tensor, several times as fast as through the mode."""
    with no_dispatch():
        return FakeTensor(fake, torch.empty_strided(shape, stride, dtype=dtype, device="meta"), device)


def known_out(func: Any, args: Any) -> Tensor | None:
    """What a call gives; None where that is not known here, and the call has to tell.

    Raises:
        RuntimeError: a norm of other sizes than its input, which fake tensors let pass.
    """
    x = args[0] if args else None
    if not isinstance(x, FakeTensor) or not x.is_floating_point():
        return None
    if func is _ATEN.batch_norm.default:
        return _batch_norm(x, *args[1:])
    if func is _ATEN.layer_norm.default:
        return _layer_norm(x, list(args[1]))
    if not x.is_contiguous():
        return None
    if func is _ATEN.conv2d.default:
        return _conv2d(x, *args[1:])
    if func in _LIKE or (func in _PAIRS and _alike(x, args[1])):
        return x if func._schema.is_mutable else _like(x)
    return None


def _alike(first: Tensor, second: Any) -> bool:
    return (
        isinstance(second, FakeTensor) and second.shape == first.shape and second.is_contiguous()
        and second.dtype == first.dtype and second.device == first.device
    )  # fmt: skip


def _like(x: FakeTensor) -> Tensor:
    """What has its shape, and its memory format if that has no gaps."""
    if x.is_contiguous():
        return made(x.fake_mode, x.shape, x.stride(), x.dtype, x.device)
    return torch.empty_like(x)


def _batch_norm(
    x: FakeTensor, weight: Any, bias: Any, mean: Tensor | None, variance: Any, training: bool, *_: Any
) -> Tensor | None:
    if training or mean is None:
        return None
    if x.shape[1] != mean.shape[0]:
        raise RuntimeError(f"running_mean should contain {x.shape[1]} elements not {mean.shape[0]}")
    return _like(x)


def _layer_norm(x: FakeTensor, shape: list[int]) -> Tensor:
    if list(x.shape[x.ndim - len(shape) :]) != shape:
        raise RuntimeError(f"layer_norm over {shape} got an input of shape {list(x.shape)}")
    return _like(x) if x.is_contiguous() else torch.empty_like(x, memory_format=torch.contiguous_format)


def _conv2d(
    x: FakeTensor, weight: Any, bias: Any = None, stride: Any = (1, 1), padding: Any = (0, 0), dilation: Any = (1, 1),
    groups: int = 1,
) -> Tensor | None:  # fmt: skip
    if x.ndim != 4 or not isinstance(weight, FakeTensor) or not weight.is_contiguous() or weight.dtype != x.dtype:
        return None
    if weight.device != x.device or not len(stride) == len(padding) == len(dilation) == 2:
        return None
    if is_channels_last(weight) or is_channels_last(x):  # grey images and kernels of 1×1 can be that too
        return None
    out, columns, *kernel = weight.shape
    places = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    sides = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in places]
    wrong_bias = bias is not None and tuple(bias.shape) != (out,)
    if columns * groups != x.shape[1] or out % groups or min(sides) < 1 or wrong_bias:
        return None
    shape = (x.shape[0], out, *sides)
    return made(x.fake_mode, shape, (out * sides[0] * sides[1], sides[0] * sides[1], sides[1], 1), x.dtype, x.device)
