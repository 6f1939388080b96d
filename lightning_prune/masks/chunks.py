"""A weight in chunks that stay in the cache, and a chunk to work in: how the masks walk over weights on the CPU."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

CHUNK = 1 << 17  # values a thread walks over at a time: three arrays of them stay in its cache
_THREADS = 16  # at most: what a chunk to work in takes grows with them
_local = threading.local()


def chunk_size() -> int:
    """How many values a chunk has: `CHUNK` for each thread of PyTorch's."""
    return CHUNK * min(torch.get_num_threads(), _THREADS)


def chunks_of(*tensors: Tensor, whole: bool = False) -> list[tuple[Tensor, ...]] | None:
    """The tensors as matching flat chunks in memory order, or None where the whole-tensor form must be used.

    With ``whole``, for a compiled kernel, which passes over memory but once, the chunk is one.
    """
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
    size = first.numel() if whole else chunk_size()
    return [flat] if first.numel() <= size else list(zip(*(t.split(size) for t in flat), strict=True))


def scratch(dtype: torch.dtype) -> Tensor:
    """A chunk to work in, kept for this thread: memory taken anew for each layer is faulted in page by page."""
    buffers: dict[torch.dtype, Tensor] = _local.__dict__.setdefault("buffers", {})
    if dtype not in buffers or buffers[dtype].numel() < chunk_size():
        with torch.inference_mode(False):
            buffers[dtype] = torch.empty(chunk_size(), dtype=dtype)
    return buffers[dtype]
