"""A bound on the memory that a piece of code takes."""

from __future__ import annotations

import ctypes
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Mallinfo2(ctypes.Structure):
    """What glibc's malloc says of itself, all in bytes or numbers of blocks; see mallinfo2(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def malloc_in_use() -> int:
    """Bytes that malloc has given out and not got back, those of tensors on the CPU among them; needs glibc 2.33.

    The memory of a process holds what malloc keeps for later too, and grows as that falls into pieces.
    """
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is given memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Fails if Python's heap grows by more than that, or a single tensor is larger."""
    tracemalloc.start()
    try:
        with Largest() as largest:
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest.bytes < limit
    assert peak < limit
