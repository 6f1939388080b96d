"""Formats 1 and 2, which are read and no longer written: every tensor is an entry of its own.

The description holds everything: ``{"format": 1, "name", "kwargs", "versions", "sparsity", "tensors": {"<key>":
{"shape", "dtype", "encoding": "dense" or "sparse"}}, "aliases", "sha256"}``, and in format 2 ``"plans"``. A dense
tensor is the entry ``<key>``; a sparse one is two, ``<key>::mask`` and ``<key>::values``. The hash covers the rest of
the description and the bytes of the entries in the order of their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_prune.io.format.bitmask import decode, popcount
from lightning_prune.io.format.container import MAX_DIM, MAX_TENSORS, Container, Kind, fail, read_kind
from lightning_prune.io.format.header import Header, TensorSpec, canonical, digest_of_entries
from lightning_prune.support.schema import is_object

FORMATS = (1, 2)
MASK, VALUES = "::mask", "::values"


def read_description(container: Container, info: dict[str, Any]) -> Header:
    """Checks the description of a file of format 1 or 2."""
    path, entries, number = container.path, container.entries, info["format"]
    sha256 = info.pop("sha256", None)
    text = canonical(info)
    tensors, aliases = info.pop("tensors", None), info.pop("aliases", None)
    fields = {"format", "name", "kwargs", "versions", "sparsity"} | ({"plans"} if number == 2 else set())
    if set(info) != fields:
        fail(path, f"its description has the wrong fields for format {number} ({', '.join(sorted(info))})")
    if not is_object(tensors) or not is_object(aliases) or len(tensors) + len(aliases) > MAX_TENSORS:
        fail(path, "its description lists no valid tensors")
    specs: dict[str, TensorSpec] = {}
    expected: dict[str, Kind] = {}
    for key, entry in tensors.items():
        if not is_object(entry, {"shape", "dtype", "encoding"}) or "::" in key:
            fail(path, f"the description of tensor {key!r} is malformed")
        kind = read_kind(path, key, entry)
        if entry["encoding"] not in ("dense", "sparse"):
            fail(path, f"tensor {key!r} has an unknown encoding")
        if entry["encoding"] == "dense":
            specs[key], expected[key] = TensorSpec(*kind), kind
            continue
        spec = specs[key] = TensorSpec(*kind, nonzero=_count(path, key, entries, kind))
        expected[key + MASK] = Kind((-(-spec.numel // 8),), torch.uint8)
        expected[key + VALUES] = Kind((spec.nonzero or 0,), kind.dtype)
    if expected != entries:
        odd = sorted(k for k in expected.keys() | entries.keys() if expected.get(k) != entries.get(k))[0]
        fail(path, f"entry {odd!r} does not fit the description of the model")
    check_aliases(path, aliases, specs)
    return Header(info, specs, aliases, lambda: _read(container, specs, text, sha256))


def _count(path: Path, key: str, entries: dict[str, Kind], kind: Kind) -> int:
    values = entries.get(key + VALUES, Kind((MAX_DIM,), kind.dtype))
    if len(values.shape) != 1 or values.nbytes > kind.nbytes or values.dtype != kind.dtype:
        fail(path, f"sparse tensor {key!r} has no values or too many")
    return values.shape[0]


def check_aliases(path: Path, aliases: dict[str, Any], specs: dict[str, TensorSpec]) -> None:
    """Every alias has a tensor to share, and none of its own."""
    for key, target in aliases.items():
        if key in specs or not isinstance(target, str) or target not in specs:
            fail(path, f"tensor {key!r} is an alias of something that is not there")


def check_mask(path: Path, key: str, spec: TensorSpec, mask: Tensor) -> None:
    """A mask announces as many values as there are, and none behind the end."""
    if popcount(mask) != spec.nonzero:
        fail(path, f"the mask of tensor {key!r} does not announce its {spec.nonzero} values")
    if spec.numel % 8 and int(mask[-1]) >> spec.numel % 8:
        fail(path, f"the mask of tensor {key!r} has bits beyond its {spec.numel} elements")


def _read(container: Container, specs: dict[str, TensorSpec], text: bytes, sha256: Any) -> dict[str, Tensor]:
    data = container.read()
    if digest_of_entries(text, container, data) != sha256:
        fail(container.path, "its content does not have the hash it was saved with")
    entries = dict(container.tensors(data))
    for key, spec in specs.items():
        if spec.sparse:
            check_mask(container.path, key, spec, entries[key + MASK])
    return {
        key: decode(entries[key + MASK], entries[key + VALUES], spec.shape) if spec.sparse else entries[key]
        for key, spec in specs.items()
    }
