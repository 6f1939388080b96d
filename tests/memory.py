"""A bound on the memory that a piece of code takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


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
