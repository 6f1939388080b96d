"""A sparse tensor as a bitmask and its non-zeros, bit for bit.

Of a tensor of n elements, the mask is ``ceil(n / 8)`` bytes, where bit ``i % 8`` (least significant first) of byte
``i // 8`` is set if element i in row-major order is stored; the values are the stored elements in that order. What is
not stored is +0, all bits zero. NaN payloads, infinities and denormals are values, so that decoding gives back the
bits that were encoded. Files hold no -0.0, which ``weight * mask`` leaves in half of the zeros: `plain_zeros` makes it
+0 before a tensor is stored, dense or sparse.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPARSE_BYTES = 16  # about what the count of values costs in the index of a file, so that tiny tensors stay dense
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """Views a contiguous tensor as integers of the same width, so that equality means equality of bits."""
    return tensor.view(_BITS[tensor.element_size()])


def plain_zeros(tensor: Tensor) -> Tensor:
    """Makes every -0.0 of a contiguous tensor +0 and leaves all other bits; the same object if there is none."""
    if not tensor.is_floating_point():
        return tensor
    raw = bits(tensor)
    negative = raw == (0x80 if raw.dtype == torch.uint8 else torch.iinfo(raw.dtype).min)  # the sign bit alone
    return raw.masked_fill(negative, 0).view(tensor.dtype) if bool(negative.any()) else tensor


def encode(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Packs a contiguous tensor on the CPU, of n elements, as (mask, values); None if that would not be smaller.

    Returns:
        mask uint8 (ceil(n / 8),) and values (number of elements that are not all-zero bits,), in the tensor's dtype.
    """
    flat = _flat(tensor)
    stored = flat != 0
    if -(-len(flat) // 8) + int(stored.sum()) * flat.itemsize + SPARSE_BYTES >= flat.nbytes:
        return None
    mask = torch.from_numpy(np.packbits(stored, bitorder="little"))
    return mask, torch.from_numpy(flat[stored]).view(tensor.dtype)


def popcount(mask: Tensor) -> int:
    """Counts the set bits of a uint8 tensor."""
    return int(np.count_nonzero(np.unpackbits(mask.numpy()).view(bool)))


def decode(mask: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unpacks what `encode` packed, to a new tensor of this shape in the dtype of the values."""
    size, source = math.prod(shape), _flat(values)
    out = np.zeros(size, source.dtype)
    # numpy finds the set bytes of a bool array several words at a time: twice as fast as indexing with the array
    out[np.flatnonzero(np.unpackbits(mask.numpy(), count=size, bitorder="little").view(bool))] = source
    return torch.from_numpy(out).view(values.dtype).reshape(shape)


def _flat(tensor: Tensor) -> NDArray[Any]:
    return bits(tensor).flatten().numpy()  # type: ignore[no-any-return]
