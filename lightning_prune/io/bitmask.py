"""A sparse tensor as a bitmask and its non-zeros, bit for bit.

Of a tensor of n elements, the mask is ``ceil(n / 8)`` bytes, where bit ``i % 8`` (least significant first) of byte
``i // 8`` is set if element i in row-major order is stored; the values are the stored elements in that order. What is
not stored is +0, all bits zero. NaN payloads, infinities and denormals are values, so that decoding gives back the
bits that were encoded. Files hold no -0.0, which ``weight * mask`` leaves in half of the zeros: `plain_zeros` makes it
+0 before a tensor is stored, dense or sparse.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ENTRY_BYTES = 120  # about what one more entry costs in the header of a file, so that small tensors stay dense
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_POPCOUNT = torch.tensor([bin(byte).count("1") for byte in range(256)])


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
    flat = bits(tensor).flatten()
    stored = flat != 0
    size, mask_size = flat.numel(), -(-flat.numel() // 8)
    width = flat.element_size()
    if mask_size + int(stored.sum()) * width + ENTRY_BYTES >= size * width:
        return None
    octets = torch.zeros(mask_size * 8, dtype=torch.uint8)
    octets[:size] = stored
    mask = torch.zeros(mask_size, dtype=torch.uint8)
    for bit in range(8):
        mask |= octets[bit::8] << bit
    return mask, flat[stored].view(tensor.dtype)


def popcount(mask: Tensor) -> int:
    """Counts the set bits of a uint8 tensor without unpacking it."""
    return int(mask.bincount(minlength=256) @ _POPCOUNT)


def decode(mask: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unpacks what `encode` packed, to a new tensor of this shape in the dtype of the values."""
    octets = torch.empty(len(mask) * 8, dtype=torch.bool)
    for bit in range(8):
        octets[bit::8] = (mask >> bit & 1).bool()
    size = math.prod(shape)
    out = torch.zeros(size, dtype=_BITS[values.element_size()])
    out[octets[:size]] = bits(values)
    return out.view(values.dtype).reshape(shape)
