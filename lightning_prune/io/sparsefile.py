"""The bytes of a pruned file: one safetensors file that stores sparse tensors as a bitmask and their non-zeros.

Layout. The safetensors metadata has one entry, ``lightning_prune``, whose value is JSON::

    {"format": 1, "name": "resnet18" or null, "kwargs": {...}, "versions": {...}, "sparsity": {...},
     "tensors": {"<key>": {"shape": [64, 3, 7, 7], "dtype": "F32", "encoding": "dense" or "sparse"}, ...},
     "aliases": {"<key>": "<key of the tensor it shares>", ...}, "sha256": "<64 hex digits>"}

A compact model's file has format 2 and one more field, ``"plans": {"<module path>": {...}, ...}``, the pruning plans
that lead from the dense model to it, with ``""`` for the model itself (see `lightning_prune.io.compact`).

A dense tensor is the safetensors entry ``<key>``. A sparse one is two: ``<key>::mask`` and ``<key>::values``, as
`lightning_prune.io.bitmask` packs them. Zeros are +0 in both: -0.0 is not kept, every other bit is. The hash covers the
rest of the JSON and the bytes of all entries; it finds damage, but a file made to do harm can carry a correct one.

Reading trusts nothing. `read_header` checks every length, offset, shape and count against the size of the file before
any tensor is allocated. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_prune.errors import PrunedFileError
from lightning_prune.io.bitmask import bits, decode, popcount
from lightning_prune.support import schema
from lightning_prune.support.schema import is_count, is_int, is_list, is_object

FORMAT, COMPACT_FORMAT = 1, 2  # readers of before there were plans refuse the second by its number
METADATA_KEY = "lightning_prune"
MASK, VALUES = "::mask", "::values"

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
Entry = tuple[tuple[int, ...], torch.dtype]  # shape and dtype
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def fail(
    path: str | Path, problem: str, remedy: str = "It is damaged or not what it claims: get it again."
) -> NoReturn:
    """Raises `PrunedFileError` with the path, the problem (what a file says can be long: cut) and the next step."""
    raise PrunedFileError(f"{path}: {problem:.1000}. {remedy}")


@dataclass(frozen=True)
class TensorSpec:
    """What the JSON says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    sparse: bool

    @property
    def numel(self) -> int:
        """Number of elements; a Python integer, which cannot overflow."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checked header: the JSON's own fields, the tensors, which keys share one, and what to hash, to what result."""

    info: dict[str, Any]
    tensors: dict[str, TensorSpec]
    aliases: dict[str, str]
    text: bytes
    sha256: str

    def specs(self) -> dict[str, TensorSpec]:
        """The specification of every key, aliases included."""
        return self.tensors | {key: self.tensors[target] for key, target in self.aliases.items()}


def canonical(info: dict[str, Any]) -> bytes:
    """Writes the JSON in the one form that is hashed."""
    return json.dumps(info, sort_keys=True, separators=(",", ":")).encode()


def digest(text: bytes, entries: Mapping[str, Tensor]) -> str:
    """Hashes the canonical JSON (without its hash) and the bytes of all entries, in the order of their keys."""
    sha256 = hashlib.sha256(text)
    for key in sorted(entries):
        sha256.update(entries[key].flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def parse_json(path: Path, text: bytes | str, what: str) -> dict[str, Any]:
    """Parses strict JSON whose top is an object."""
    try:
        value = schema.parse(text)
    except ValueError as error:
        fail(path, f"{what} is not valid JSON ({error})")
    if not is_object(value):
        fail(path, f"{what} is not a JSON object")
    return value


def _shape_and_dtype(path: Path, key: str, entry: dict[str, Any]) -> Entry:
    """Checks the ``shape`` and ``dtype`` that both JSONs give of a tensor."""
    shape, dtype = entry["shape"], entry["dtype"]
    if not is_list(shape, lambda n: is_count(n, MAX_DIM), MAX_DIMS):
        fail(path, f"tensor {key!r} has no valid shape")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        fail(path, f"tensor {key!r} has a dtype that is not one of {', '.join(DTYPES)}")
    return tuple(shape), DTYPES[dtype]


def _read_entries(path: Path) -> tuple[str, dict[str, Entry]]:
    """Reads the safetensors header and checks it against the size of the file.

    Returns:
        Our JSON text, and the shape and dtype of every entry. The entries' bytes cover the file without gap or overlap.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            fail(path, f"it is {size} bytes long, less than its own header needs (truncated?)")
        if length > MAX_HEADER_BYTES:
            fail(path, f"its header declares {length} bytes, more than the {MAX_HEADER_BYTES} a pruned model may need")
        text = file.read(length)
    header = parse_json(path, text, "the safetensors header")
    metadata = header.pop("__metadata__", None)
    if not is_object(metadata) or not isinstance(metadata.get(METADATA_KEY), str):
        fail(
            path,
            "it was not written by save_pruned",
            "A plain safetensors file loads with safetensors.torch.load_file.",
        )
    if len(header) > 2 * MAX_TENSORS:
        fail(path, f"it declares {len(header)} tensors")
    entries: dict[str, Entry] = {}
    spans: list[list[int]] = []
    for key, entry in header.items():
        if not is_object(entry, {"dtype", "shape", "data_offsets"}):
            fail(path, f"the header's entry of {key!r} is malformed")
        shape, dtype = _shape_and_dtype(path, key, entry)
        offsets = entry["data_offsets"]
        if not is_list(offsets, lambda n: is_count(n, size)) or len(offsets) != 2:
            fail(path, f"tensor {key!r} has no valid place in the file")
        if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
            fail(path, f"tensor {key!r} of shape {list(shape)} does not fill its place of {offsets}")
        entries[key] = (shape, dtype)
        spans.append(offsets)
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            fail(path, f"its tensors overlap or leave a gap at byte {end} of the data")
        end = stop
    if end != size - 8 - length:
        fail(path, f"its tensors take {end} bytes, but {size - 8 - length} are there (truncated?)")
    return metadata[METADATA_KEY], entries


def read_header(path: Path) -> Header:
    """Reads and checks everything a file says about itself, without allocating a tensor.

    Raises:
        PrunedFileError: if the file is a folder or any check fails.
        FileNotFoundError: if there is no such file.
    """
    if path.is_dir():
        fail(path, "it is a folder", "Give the path of a file.")
    text, entries = _read_entries(path)
    info = parse_json(path, text, "the description of the model")
    number = info.get("format")
    if not is_int(number) or number not in (FORMAT, COMPACT_FORMAT):
        known = f"{FORMAT} or {COMPACT_FORMAT}"
        fail(path, f"it has format {number!r}, not {known}", "A newer lightning_prune may read it.")
    sha256 = info.pop("sha256", None)
    hashed = canonical(info)
    tensors, aliases = info.pop("tensors", None), info.pop("aliases", None)
    fields = {"format", "name", "kwargs", "versions", "sparsity"} | ({"plans"} if number == COMPACT_FORMAT else set())
    if set(info) != fields:
        fail(path, f"its description has the wrong fields for format {number} ({', '.join(sorted(info))})")
    if not is_object(tensors) or not is_object(aliases) or len(tensors) + len(aliases) > MAX_TENSORS:
        fail(path, "its description lists no valid tensors")
    specs: dict[str, TensorSpec] = {}
    expected: dict[str, Entry] = {}
    for key, entry in tensors.items():
        if not is_object(entry, {"shape", "dtype", "encoding"}) or "::" in key:
            fail(path, f"the description of tensor {key!r} is malformed")
        shape, dtype = _shape_and_dtype(path, key, entry)
        if entry["encoding"] not in ("dense", "sparse"):
            fail(path, f"tensor {key!r} has an unknown encoding")
        spec = specs[key] = TensorSpec(shape, dtype, entry["encoding"] == "sparse")
        if spec.sparse:
            count = entries.get(key + VALUES, ((MAX_DIM,), dtype))[0]
            if len(count) != 1 or count[0] > spec.numel:
                fail(path, f"sparse tensor {key!r} has no values or too many")
            expected[key + MASK], expected[key + VALUES] = ((-(-spec.numel // 8),), torch.uint8), (count, dtype)
        else:
            expected[key] = (shape, dtype)
    if expected != entries:
        odd = sorted(k for k in expected.keys() | entries.keys() if expected.get(k) != entries.get(k))[0]
        fail(path, f"entry {odd!r} does not fit the description of the model")
    for key, target in aliases.items():
        if key in specs or not isinstance(target, str) or target not in specs:
            fail(path, f"tensor {key!r} is an alias of something that is not there")
    return Header(info, specs, aliases, hashed, str(sha256))


def read_tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """Reads every tensor, dense, bit for bit as it is in the file; aliases are the same tensor object.

    Args:
        path: the file.
        header: what `read_header` returned for it.

    Raises:
        PrunedFileError: if the hash is another, a mask does not fit its values, or the file is not as its header said.
    """
    try:
        with safe_open(path, framework="pt") as file:
            entries = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError, RuntimeError) as error:
        fail(path, f"it cannot be read ({error})")
    if digest(header.text, entries) != header.sha256:
        fail(path, "its content does not have the hash it was saved with")
    out: dict[str, Tensor] = {}
    for key, spec in header.tensors.items():
        if spec.sparse:
            mask, values = entries.pop(key + MASK), entries.pop(key + VALUES)
            if popcount(mask) != len(values):
                fail(path, f"the mask of tensor {key!r} does not announce its {len(values)} values")
            if spec.numel % 8 and int(mask[-1]) >> spec.numel % 8:
                fail(path, f"the mask of tensor {key!r} has bits beyond its {spec.numel} elements")
            out[key] = decode(mask, values, spec.shape)
        else:
            out[key] = entries.pop(key)
            if spec.dtype == torch.bool and bool((bits(out[key]) > 1).any()):
                fail(path, f"boolean tensor {key!r} holds other bytes than 0 and 1")
    return out | {key: out[target] for key, target in header.aliases.items()}
