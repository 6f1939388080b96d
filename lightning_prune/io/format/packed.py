"""Format 3: all tensors of a model packed into a few entries. The bytes are laid out in ``docs/files.md``.

One entry a dtype holds the stored elements of all tensors one after another, ``masks`` their bitmasks, ``scales`` the
scales of int8 weights, and ``index`` what lies where, as JSON under zlib: a header entry for each tensor would take
more room than the tensors of a small network.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from lightning_prune.io.format import zstd
from lightning_prune.io.format.bitmask import decode, encode
from lightning_prune.io.format.container import (
    DTYPE_NAMES,
    DTYPES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    Bytes,
    Container,
    Kind,
    as_tensor,
    check_bool,
    fail,
    parse_json,
    read_kind,
)  # fmt: skip
from lightning_prune.io.format.header import METADATA_KEY, Header, TensorSpec, canonical, digest
from lightning_prune.io.format.legacy import check_aliases, check_mask
from lightning_prune.io.format.narrow import Loss, can_be_stored_as, narrow, widen
from lightning_prune.support.schema import is_count, is_object

FORMAT = 3
INDEX, MASKS, SCALES, PACKED = "index", "masks", "scales", ".zstd"
FIELDS = {"format", "name", "kwargs", "versions", "sparsity", "values", "compression"}
INDEX_FACTOR, INDEX_ROOM = 16, 64 * 2**10  # the index may be so many times its compressed bytes, and so many more
MAX_EXPANSION = 256  # bytes of the dense tensors to bytes of the file; without zstd, masks of zeros reach 64
EXPANSION_ROOM = 2**20
_BLOBS = DTYPES | {MASKS: torch.uint8, SCALES: torch.float32}


def write(
    state: Mapping[str, Tensor], aliases: dict[str, str], plans: dict[str, Any], info: dict[str, Any],
    values: str | None, compress: str | None,
) -> bytes:  # fmt: skip
    """The bytes of a file.

    Args:
        state: {key: contiguous tensor on the CPU, without -0.0}.
        aliases: {key: the key whose tensor it shares}.
        plans: pruning plans as plain data.
        info: the description's format, name, kwargs, versions and sparsity.
        values: "float16" or "int8" to narrow weights, None to leave them.
        compress: "zstd" or None.

    Raises:
        ValueError: a tensor cannot be narrowed.
        ImportError: zstandard is missing.
    """
    parts: dict[str, list[Tensor]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    loss = Loss()
    for key, tensor in state.items():
        try:
            stored, scales = narrow(tensor, values)
        except ValueError as error:
            raise ValueError(f"tensor {key!r} cannot be stored as {values}: {error}") from None
        entry = tensors[key] = {"shape": list(tensor.shape), "dtype": DTYPE_NAMES[tensor.dtype]}
        if stored.dtype != tensor.dtype:
            entry["stored"] = DTYPE_NAMES[stored.dtype]
            loss.add(key, tensor, widen(stored, scales, tensor.dtype))
        if scales is not None:
            parts.setdefault(SCALES, []).append(scales)
        packed = encode(stored)
        if packed is not None:
            stored = packed[1]
            parts.setdefault(MASKS, []).append(packed[0])
            entry["nonzero"] = len(stored)
        parts.setdefault(DTYPE_NAMES[stored.dtype], []).append(stored.flatten())
    entries = {name: torch.cat(some) for name, some in parts.items()}
    entries = {name: entry for name, entry in entries.items() if len(entry)}
    info = info | {"values": loss.summary(values) if values else None, "compression": None}
    index = {"tensors": tensors, "aliases": aliases, "plans": plans}
    plain = _put_together(info, index, entries)
    if compress is None:
        return plain
    info["compression"] = compress
    smaller = _put_together(info, index, dict(_compressed(name, entry) for name, entry in entries.items()))
    dense = sum(tensor.nbytes for tensor in state.values())
    # a reader takes no file that grows without bound, as one of hardly anything but zeros would
    return smaller if len(smaller) < len(plain) and dense <= _most(len(smaller)) else plain


def _compressed(name: str, entry: Tensor) -> tuple[str, Tensor]:
    packed = zstd.compress(entry.view(torch.uint8).numpy())
    return (name + PACKED, torch.from_numpy(packed.copy())) if len(packed) < entry.nbytes else (name, entry)


def _put_together(info: dict[str, Any], index: dict[str, Any], entries: dict[str, Tensor]) -> bytes:
    text = json.dumps(index, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError("the index of its tensors and plans is too long: it has too many tensors, or kept channels")
    packed = next(p for level in (9, 0) if len(text) <= _most_index(p := zlib.compress(text, level)))
    entries = {INDEX: torch.frombuffer(bytearray(packed), dtype=torch.uint8), **entries}
    # safetensors decides on the order of the entries, so that the hash needs a first draft of the file
    draft = safetensors.torch.save(entries)
    data = np.frombuffer(draft, np.uint8)[8 + int.from_bytes(draft[:8], "little") :]
    info = info | {"sha256": digest(canonical(info), data)}
    return safetensors.torch.save(entries, {METADATA_KEY: json.dumps(info, allow_nan=False, separators=(",", ":"))})


def _most_index(packed: bytes | Bytes) -> int:
    return min(INDEX_FACTOR * len(packed) + INDEX_ROOM, MAX_HEADER_BYTES)


def _most(file_bytes: int) -> int:
    return MAX_EXPANSION * file_bytes + EXPANSION_ROOM


def read_description(container: Container, info: dict[str, Any]) -> Header:
    """Checks a file of format 3: its hash, its index, and that the entries are those that the index asks for."""
    path = container.path
    sha256 = info.pop("sha256", None)
    if set(info) != FIELDS:
        fail(path, f"its description has the wrong fields for format {FORMAT} ({', '.join(sorted(info))})")
    if info["compression"] not in (None, "zstd"):
        fail(path, f"it is compressed by {info['compression']!r:.100}", "A newer lightning_prune may read it.")
    if INDEX not in container.entries or container.entries[INDEX].dtype != torch.uint8:
        fail(path, "it has no index of its tensors")
    data = container.read()
    if digest(canonical(info), data) != sha256:
        fail(path, "its content does not have the hash it was saved with")
    index = _read_index(path, container.raw(data, INDEX))
    specs = {key: _read_spec(path, key, entry) for key, entry in index["tensors"].items()}
    check_aliases(path, index["aliases"], specs)
    _check_entries(container, specs, compressed=info["compression"] is not None)
    dense, size = sum(Kind(s.shape, s.dtype).nbytes for s in specs.values()), container.start + container.size
    if dense > _most(size):
        fail(path, f"it is {size} bytes long and asks for tensors of {dense}")
    info["plans"] = index["plans"]
    return Header(info, specs, index["aliases"], lambda: _read(container, data, specs))


def _read_index(path: Path, packed: Bytes) -> dict[str, Any]:
    most = _most_index(packed)
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed.tobytes(), most + 1)
    except zlib.error as error:
        fail(path, f"its index cannot be unpacked ({error})")
    if len(text) > most or not unpacker.eof or unpacker.unused_data:
        fail(path, f"its index is cut off, or longer than the {most} bytes that it may have")
    index = parse_json(path, text, "the index")
    if not is_object(index, {"tensors", "aliases", "plans"}):
        fail(path, "its index has the wrong fields")
    tensors, aliases = index["tensors"], index["aliases"]
    if not is_object(tensors) or not is_object(aliases) or len(tensors) + len(aliases) > MAX_TENSORS:
        fail(path, "its index lists no valid tensors")
    return index


def _read_spec(path: Path, key: str, entry: Any) -> TensorSpec:
    if not is_object(entry) or not {"shape", "dtype"} <= entry.keys() <= {"shape", "dtype", "stored", "nonzero"}:
        fail(path, f"the description of tensor {key!r} is malformed")
    kind = read_kind(path, key, entry)
    stored = None
    if "stored" in entry:
        stored = DTYPES.get(entry["stored"]) if isinstance(entry["stored"], str) else None
        if stored is None or not can_be_stored_as(kind.shape, kind.dtype, stored):
            fail(path, f"tensor {key!r} cannot be stored as {entry['stored']!r:.100}")
    spec = TensorSpec(*kind, nonzero=entry.get("nonzero"), stored=stored)
    if "nonzero" in entry and not is_count(spec.nonzero, spec.numel):
        fail(path, f"sparse tensor {key!r} has no values or too many")
    return spec


def _sizes(specs: dict[str, TensorSpec]) -> dict[str, Kind]:
    """The entries that tensors need, but for the index."""
    counts: dict[str, int] = {}
    for spec in specs.values():
        dtype = DTYPE_NAMES[spec.stored or spec.dtype]
        counts[dtype] = counts.get(dtype, 0) + (spec.numel if spec.nonzero is None else spec.nonzero)
        if spec.sparse:
            counts[MASKS] = counts.get(MASKS, 0) + -(-spec.numel // 8)
        if spec.scaled:
            counts[SCALES] = counts.get(SCALES, 0) + spec.shape[0]
    return {name: Kind((count,), _BLOBS[name]) for name, count in counts.items() if count}


def _check_entries(container: Container, specs: dict[str, TensorSpec], compressed: bool) -> None:
    found = {name: kind for name, kind in container.entries.items() if name != INDEX}
    for name, kind in _sizes(specs).items():
        packed = found.pop(name + PACKED, None) if compressed and name not in found else None
        ok = packed.dtype == torch.uint8 if packed is not None else found.pop(name, None) == kind
        if not ok:
            fail(container.path, f"entry {name!r} does not fit the index, which needs {kind.shape[0]} of {kind.dtype}")
    if found:
        fail(container.path, f"entry {next(iter(found))!r} is not in the index")


def _read(container: Container, data: Bytes, specs: dict[str, TensorSpec]) -> dict[str, Tensor]:
    """Every tensor, dense; all masks are checked before the first is unpacked."""
    path, blobs = container.path, {}
    for name, kind in _sizes(specs).items():
        try:
            if name in container.entries:
                raw = container.raw(data, name)
            else:
                raw = zstd.decompress(container.raw(data, name + PACKED), kind.nbytes)
        except ValueError as error:
            fail(path, f"entry {name!r} cannot be unpacked: {error}")
        except ImportError:
            fail(path, "it is compressed by zstd, and the package zstandard is missing", zstd.REMEDY)
        blobs[name] = as_tensor(raw, kind.dtype)
    scales = blobs.get(SCALES)
    if scales is not None and not bool((scales.isfinite() & (scales >= 0)).all()):
        fail(path, "a scale is not a finite number from zero on")
    if "BOOL" in blobs:
        check_bool(path, "BOOL", blobs["BOOL"])
    at = dict.fromkeys(blobs, 0)

    def take(name: str, count: int) -> Tensor:
        at[name] = at.get(name, 0) + count
        whole = blobs.get(name)
        return whole[at[name] - count : at[name]] if whole is not None else torch.empty(0, dtype=_BLOBS[name])

    masks = {key: take(MASKS, -(-spec.numel // 8)) for key, spec in specs.items() if spec.sparse}
    for key, mask in masks.items():
        check_mask(path, key, specs[key], mask)
    out: dict[str, Tensor] = {}
    for key, spec in specs.items():
        stored = take(DTYPE_NAMES[spec.stored or spec.dtype], spec.numel if spec.nonzero is None else spec.nonzero)
        stored = decode(masks[key], stored, spec.shape) if spec.sparse else stored.reshape(spec.shape)
        out[key] = widen(stored, take(SCALES, spec.shape[0]) if spec.scaled else None, spec.dtype)
    return out
