"""Tensors of a model by name, and parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """{name: tensor} of all parameters and buffers, shared ones under each of their names."""
    parameters, buffers = dict[str, Tensor](), dict[str, Tensor]()
    for path, module in model.named_modules(remove_duplicate=False):  # once for both, as that is most of the time
        for found, held in ((parameters, module._parameters), (buffers, module._buffers)):
            for name, tensor in held.items():
                if tensor is not None:
                    found[f"{path}.{name}" if path else name] = tensor
    return parameters | buffers


def tensor_caches(module: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterates over the (name, dict) in which a layer caches tensors in eval mode, computed from its parameters."""
    for name, value in vars(module).items():
        if isinstance(value, dict) and value and name[0] != "_" and any(isinstance(v, Tensor) for v in value.values()):
            yield name, value


def take(tensor: Tensor, kept: Mapping[int, Sequence[int] | Tensor]) -> Tensor:
    """The kept entries, {dim: indices}, of a tensor as a new tensor in the same memory format; other dims are whole."""
    out = tensor
    for dim, indices in kept.items():
        out = out.index_select(dim, torch.as_tensor(indices, dtype=torch.int64, device=tensor.device))
    return like_format(out, tensor)


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(tensor: Tensor) -> bool:
    """Whether strides say that channels come last.

    Kernels of 1×1, of depthwise layers and of one colour are contiguous in either order, and the strides alone tell a
    convolution in which to compute. Of one channel at one place they tell nothing.
    """
    if tensor.ndim not in _LAST or tensor.shape[1:].numel() == 1:
        return False
    strides, step = [1], tensor.shape[1]
    for size in reversed(tensor.shape[2:]):
        strides.insert(1, step)
        step *= size
    return tensor.stride() == (step, *strides)


def like_format(out: Tensor, tensor: Tensor) -> Tensor:
    """`out` in channels-last order if `tensor` is in that order, else contiguous."""
    if not is_channels_last(tensor):
        return out.contiguous()
    return torch.empty_like(out, memory_format=_LAST[out.ndim]).copy_(out)


def shape_only(example: Tensor) -> Tensor:
    """A tensor of the same shape without the user's data in it, of one element's memory; integers stay as they are."""
    return example.new_zeros(()).expand(example.shape) if example.is_floating_point() else example
