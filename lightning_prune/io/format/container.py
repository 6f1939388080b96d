"""The outside of every file here: safetensors, read with checks against the size of the file before it is trusted.

A safetensors file is 8 bytes (the length of the header, little-endian), the header (JSON: per entry dtype, shape and
place) and the bytes of the entries. It is read with the standard library and numpy: what a header claims is compared
with what is there, in Python's integers, and no more is read than the file has.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_prune.errors import PrunedFileError
from lightning_prune.support import schema
from lightning_prune.support.schema import is_count, is_list, is_object

# Bounds on what a header may say. The largest timm models have 3,000 tensors and headers below 2 MB.
MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 50_000
MAX_DIMS = 16
MAX_DIM = 2**48

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
Bytes = NDArray[np.uint8]


class Kind(NamedTuple):
    """The shape and dtype of an entry."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The room it takes; a Python integer, which cannot overflow."""
        return math.prod(self.shape) * self.dtype.itemsize


def fail(
    path: str | Path, problem: str, remedy: str = "It is damaged or not what it claims: get it again."
) -> NoReturn:
    """Raises `PrunedFileError` with the path, the problem (what a file says can be long: cut) and the next step."""
    raise PrunedFileError(f"{path}: {problem:.1000}. {remedy}")


def parse_json(path: Path, text: bytes | str, what: str) -> dict[str, Any]:
    """Parses strict JSON whose top is an object."""
    try:
        value = schema.parse(text)
    except ValueError as error:
        fail(path, f"{what} is not valid JSON ({error})")
    if not is_object(value):
        fail(path, f"{what} is not a JSON object")
    return value


def read_kind(path: Path, key: str, entry: dict[str, Any]) -> Kind:
    """Checks the ``shape`` and ``dtype`` that a JSON gives of a tensor."""
    shape, dtype = entry["shape"], entry["dtype"]
    if not is_list(shape, lambda n: is_count(n, MAX_DIM), MAX_DIMS):
        fail(path, f"tensor {key!r} has no valid shape")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        fail(path, f"tensor {key!r} has a dtype that is not one of {', '.join(DTYPES)}")
    return Kind(tuple(shape), DTYPES[dtype])


def regular_size(path: Path) -> int:
    """The size of a regular file: opening anything else (a pipe, a device) could wait for ever, or never end."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        fail(path, "it is a folder", "Give the path of a file.")
    if not stat.S_ISREG(status.st_mode):
        fail(path, "it is not a regular file", "Give the path of a file.")
    return status.st_size


@dataclass(frozen=True)
class Container:
    """A checked header.

    Attributes:
        path: the file.
        metadata: the header's ``__metadata__``, whatever it is.
        entries: {name: shape and dtype}.
        places: {name: first byte in the data}. The entries cover the data without gap or overlap.
        start: where in the file the data begin.
        size: bytes of the data.
    """

    path: Path
    metadata: Any
    entries: dict[str, Kind]
    places: dict[str, int]
    start: int
    size: int

    @staticmethod
    def open(path: Path) -> Container:
        """Reads and checks the header, without reading an entry.

        Raises:
            PrunedFileError: any check fails.
            FileNotFoundError: there is no such file.
        """
        size = regular_size(path)
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > size - 8:
                fail(path, f"it is {size} bytes long, less than its own header needs (truncated?)")
            if length > MAX_HEADER_BYTES:
                fail(
                    path,
                    f"its header declares {length} bytes, more than the {MAX_HEADER_BYTES} a pruned model may need",
                )
            text = file.read(length)
        header = parse_json(path, text, "the safetensors header")
        metadata = header.pop("__metadata__", None)
        if len(header) > 2 * MAX_TENSORS:
            fail(path, f"it declares {len(header)} tensors")
        entries: dict[str, Kind] = {}
        spans: list[list[int]] = []
        for key, entry in header.items():
            if not is_object(entry, {"dtype", "shape", "data_offsets"}):
                fail(path, f"the header's entry of {key!r} is malformed")
            entries[key] = read_kind(path, key, entry)
            offsets = entry["data_offsets"]
            if not is_list(offsets, lambda n: is_count(n, size)) or len(offsets) != 2:
                fail(path, f"tensor {key!r} has no valid place in the file")
            if offsets[1] - offsets[0] != entries[key].nbytes:
                fail(path, f"tensor {key!r} of shape {list(entries[key].shape)} does not fill its place of {offsets}")
            spans.append(offsets)
        end = 0
        for begin, stop in sorted(spans):
            if begin != end:
                fail(path, f"its tensors overlap or leave a gap at byte {end} of the data")
            end = stop
        if end != size - 8 - length:
            fail(path, f"its tensors take {end} bytes, but {size - 8 - length} are there (truncated?)")
        places = {key: span[0] for key, span in zip(header, spans, strict=True)}
        return Container(path, metadata, entries, places, 8 + length, end)

    def read(self) -> Bytes:
        """Reads the data, all entries in one."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = np.fromfile(file, np.uint8, self.size)
            if len(data) != self.size or os.fstat(file.fileno()).st_size != self.start + self.size:
                fail(self.path, "it changed while it was read")
        return data

    def raw(self, data: Bytes, name: str) -> Bytes:
        """The bytes of one entry."""
        begin = self.places[name]
        return data[begin : begin + self.entries[name].nbytes]

    def tensors(self, data: Bytes) -> Iterator[tuple[str, Tensor]]:
        """All entries as tensors over the data: (name, tensor)."""
        for name, kind in self.entries.items():
            tensor = as_tensor(self.raw(data, name), kind.dtype).reshape(kind.shape)
            check_bool(self.path, name, tensor)
            yield name, tensor


def as_tensor(raw: Bytes, dtype: torch.dtype) -> Tensor:
    """A flat tensor of that dtype over the bytes, or over a copy where they lie askew in memory."""
    if raw.ctypes.data % dtype.itemsize:
        raw = raw.copy()
    return torch.from_numpy(raw).view(dtype)


def check_bool(path: Path, key: str, tensor: Tensor) -> None:
    """PyTorch does not define what another byte than 0 and 1 means in a boolean tensor."""
    if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        fail(path, f"boolean tensor {key!r} holds other bytes than 0 and 1")
