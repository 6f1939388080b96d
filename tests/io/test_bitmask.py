"""Packing and unpacking, bit for bit, against a definition written with Python integers."""

from __future__ import annotations

import struct

import pytest
import torch
from torch import Tensor

from lightning_prune.io.format.bitmask import bits, decode, encode, plain_zeros, popcount
from lightning_prune.io.format.container import DTYPES


def sparse(size: int, dtype: torch.dtype, keep: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    dense = torch.randint(1, 100, (size,), generator=generator).to(dtype)
    return torch.where(torch.rand(size, generator=generator) < keep, dense, torch.zeros((), dtype=dtype))


@pytest.mark.parametrize("dtype", [d for name, d in DTYPES.items() if not name.startswith("F8")])
@pytest.mark.parametrize("size", [2000, 2001, 2007, 4096])
def test_round_trip(size: int, dtype: torch.dtype) -> None:
    tensor = sparse(size, dtype).reshape(1, -1)
    packed = encode(tensor)
    assert packed is not None
    mask, values = packed
    assert (mask.dtype, mask.shape) == (torch.uint8, (-(-size // 8),))
    assert values.dtype == dtype
    assert popcount(mask) == len(values) == int((tensor != 0).sum())
    back = decode(mask, values, (1, size))
    assert back.dtype == dtype
    assert bits(back).equal(bits(tensor))


def test_the_layout_is_the_documented_one() -> None:
    tensor = sparse(803, torch.float32)
    packed = encode(tensor)
    assert packed is not None
    expected_mask, expected_values = bytearray(101), []
    for index, value in enumerate(tensor.tolist()):
        if value != 0:
            expected_mask[index // 8] |= 1 << (index % 8)
            expected_values.append(value)
    assert bytes(packed[0].tolist()) == bytes(expected_mask)
    assert packed[1].tolist() == expected_values


def test_only_zero_bits_are_left_out() -> None:
    patterns = [0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x00000001, 0x3F800000]
    raw = b"".join(struct.pack("<I", p) for p in patterns) + bytes(4 * 1000)
    tensor = torch.frombuffer(bytearray(raw), dtype=torch.float32)
    packed = encode(tensor)
    assert packed is not None
    assert len(packed[1]) == len(patterns)
    assert bits(decode(*packed, tuple(tensor.shape))).equal(bits(tensor))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_plain_zeros_changes_the_sign_of_zeros_and_no_other_bit(dtype: torch.dtype) -> None:
    width = dtype.itemsize
    patterns = [0, 1 << (8 * width - 1), 1, (1 << (8 * width - 1)) + 1, (1 << 8 * width) - 1, 0x7C, 0x7F]
    patterns = [0, 1] if dtype == torch.bool else patterns
    raw = torch.tensor(list(b"".join(p.to_bytes(width, "little") for p in patterns)), dtype=torch.uint8)
    found = bits(plain_zeros(raw.view(dtype)))
    expected = bits(raw.view(dtype)).clone()
    if dtype.is_floating_point:
        expected[1] = 0
    assert found.equal(expected)


def test_plain_zeros_copies_only_what_it_changes() -> None:
    tensor = torch.tensor([0.0, -1.0])
    assert plain_zeros(tensor) is tensor
    tensor[0] = -0.0
    assert plain_zeros(tensor) is not tensor
    assert tensor.signbit().all()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(0, 7),
        torch.zeros(4),  # smaller dense than with a count of its values
        torch.ones(5000),
        torch.ones(5000, dtype=torch.bool),
        torch.zeros(18, dtype=torch.uint8),
    ],
)
def test_what_would_not_shrink_stays_dense(tensor: Tensor) -> None:
    assert encode(tensor) is None


@pytest.mark.parametrize(("zeros", "packs"), [(35, False), (36, True)])
def test_the_smaller_form_is_chosen(zeros: int, packs: bool) -> None:
    """4000 bytes dense; packed 125 + 4 (1000 - zeros) and 16 for their count: less from 36 zeros on."""
    tensor = torch.ones(1000)
    tensor[:zeros] = 0
    assert (encode(tensor) is not None) == packs


def test_all_zero_bits_pack_to_a_mask_alone() -> None:
    packed = encode(torch.zeros(1001))
    assert packed is not None
    assert (len(packed[0]), len(packed[1])) == (126, 0)
    assert bits(decode(*packed, (7, 143))).equal(bits(torch.zeros(7, 143)))
