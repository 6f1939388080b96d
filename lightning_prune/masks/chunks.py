"""A weight in chunks that stay in the cache, and a chunk to work in: how the masks walk over weights on the CPU."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

CHUNK = 1 << 19
_local = threading.local()


def chunks_of(*tensors: Tensor, size: int = CHUNK) -> list[tuple[Tensor, ...]] | None:
    """The tensors as matching flat chunks in memory order, or None where the whole-tensor form must be used."""
    first = tensors[0]
    dense = first.is_contiguous() or (first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last))
    if (
        first.device.type != "cpu"
        or first.dtype not in (torch.float32, torch.float64)
        or not dense
        or any(t.stride() != first.stride() or t.dtype != first.dtype for t in tensors)
    ):
        return None
    flat = tuple(t.detach().as_strided((t.numel(),), (1,)) for t in tensors)
    return [flat] if first.numel() <= size else list(zip(*(t.split(size) for t in flat), strict=True))


def scratch(dtype: torch.dtype) -> Tensor:
    """A chunk to work in, kept for this thread: memory taken anew for each layer is faulted in page by page."""
    buffers: dict[torch.dtype, Tensor] = _local.__dict__.setdefault("buffers", {})
    if dtype not in buffers:
        with torch.inference_mode(False):
            buffers[dtype] = torch.empty(CHUNK, dtype=dtype)
    return buffers[dtype]
