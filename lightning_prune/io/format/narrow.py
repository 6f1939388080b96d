"""Weights in fewer bits: float16, or int8 with one scale per output channel.

Only tensors of two or more dims are narrowed, since biases, norms and running statistics are few and sensitive. int8
is symmetric, as static quantization of weights in the runtimes: channel c of ``w`` is stored as ``q = round(w / s_c)``
with ``s_c = max |w_c| / 127``, and comes back as ``q * s_c``; a weight that rounds to zero is a zero. Where the scales
would take more than the fewer bits save (few non-zeros a channel), a tensor stays as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_prune.io.format.bitmask import plain_zeros

STORED = {"float16": torch.float16, "int8": torch.int8}


def narrow(tensor: Tensor, values: str | None) -> tuple[Tensor, Tensor | None]:
    """A tensor as it is stored, and of int8 its scales (size of dim 0,), float32; itself where it is not narrowed.

    Raises:
        ValueError: a weight is not finite, or outside of float16's range.
    """
    if values is None or not can_be_stored_as(tensor.shape, tensor.dtype, STORED[values]):
        return tensor, None
    if not bool(tensor.isfinite().all()):
        raise ValueError("it holds NaN or infinity")
    if values == "float16":
        half = tensor.half()
        if not bool(half.isfinite().all()):
            raise ValueError(f"it holds {float(tensor.abs().max()):g}, above the {65504} of float16")
        return plain_zeros(half), None
    if int(tensor.count_nonzero()) * (tensor.element_size() - 1) <= 4 * len(tensor):
        return tensor, None
    wide = tensor.to(_compute_dtype(tensor.dtype)).flatten(1)
    scales = (wide.abs().amax(dim=1) / 127).float()
    if not bool(scales.isfinite().all()):
        raise ValueError(f"it holds {float(tensor.abs().max()):g}, above the range of a float32 scale")
    divisors = scales.masked_fill(scales == 0, 1).to(wide.dtype)
    return (wide / divisors[:, None]).round().clamp(-127, 127).to(torch.int8).reshape(tensor.shape), scales


def widen(stored: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The tensor that a stored one stands for; itself where it was not narrowed."""
    if scales is None:
        return stored.to(dtype)
    wide = _compute_dtype(dtype)
    # an integer zero times a scale is +0, as scales are not negative
    return (stored.to(wide).flatten(1) * scales.to(wide)[:, None]).to(dtype).reshape(stored.shape)


def can_be_stored_as(shape: tuple[int, ...], dtype: torch.dtype, stored: torch.dtype) -> bool:
    """Whether a tensor is one that is narrowed to that dtype."""
    wider = dtype.is_floating_point and dtype.itemsize > stored.itemsize
    return stored in STORED.values() and wider and len(shape) >= 2 and math.prod(shape) > 0


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Loss:
    """What narrowing took: the error relative to the weights, over all that were narrowed and of the worst tensor."""

    def __init__(self) -> None:
        self._error = self._weight = self._worst = 0.0
        self._where: str | None = None

    def add(self, key: str, exact: Tensor, back: Tensor) -> None:
        """Counts one tensor."""
        error, weight = (float(t.double().square().sum()) for t in (exact.double() - back.double(), exact))
        self._error, self._weight = self._error + error, self._weight + weight
        if error > self._worst * weight or self._where is None:
            self._worst, self._where = error / weight if weight else 0.0, key

    def summary(self, values: str) -> dict[str, float | str | None]:
        """``relative_error`` is ``‖w - w'‖ / ‖w‖`` (Euclidean); ``worst_tensor`` has ``worst_relative_error``."""
        return {
            "stored": values,
            "relative_error": math.sqrt(self._error / self._weight) if self._weight else 0.0,
            "worst_tensor": self._where,
            "worst_relative_error": math.sqrt(self._worst),
        }
