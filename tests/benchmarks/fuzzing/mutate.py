"""Mutations: what is done to the bytes of a file, to what they mean, and to the files of a folder.

Each takes a `random.Random` and a `Case`, and changes the case. Those that keep the file's own hash right are how
somebody would who means harm; the others are how damage looks.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import zstandard

from lightning_prune.io.folder import CONFIG, PLAN, WEIGHTS, digest
from lightning_prune.io.format.container import DTYPES
from lightning_prune.io.format.header import canonical
from tests.benchmarks.fuzzing.parts import NUMBERS, PATHS, VALUES, Parts, dump, poke
from tests.benchmarks.fuzzing.seeds import FILE, Seed

Rng = random.Random
NAMES = ("resnet18", "resnet50", "vit_base_patch16_224", "fuzz_tiny", "fuzz_tiny.tag", "no_such_model", "resnet18.none")
# much of one byte, packed once so that making a case takes no memory
MUCH = [byte * size for byte in (b" ", b"[", b"\0") for size in (10**5, 10**6, 2 * 10**7)]
ZLIB_BOMBS, ZSTD_BOMBS = [zlib.compress(much, 9) for much in MUCH], [zstandard.compress(much) for much in MUCH]
del MUCH


@dataclass
class Case:
    """What will be read.

    Attributes:
        seed: what it was.
        files: {name: content}.
        rehashed: whether the hash was made right again, so that something else may load.
        special: {name: what stands there instead of a file}, of a folder.
    """

    seed: Seed
    files: dict[str, bytes]
    rehashed: bool = False
    special: dict[str, str] = field(default_factory=dict)


def _some(rng: Rng, case: Case) -> str:
    return rng.choice(sorted(case.files))


def _on_bytes(change: Callable[[Rng, bytearray], None]) -> Callable[[Rng, Case], None]:
    def mutate(rng: Rng, case: Case) -> None:
        name = _some(rng, case)
        raw = bytearray(case.files[name])
        change(rng, raw)
        case.files[name] = bytes(raw)

    return mutate


def _at(rng: Rng, raw: bytearray) -> int:
    """Half of the time in the first kilobyte, where the headers are."""
    return rng.randrange(min(len(raw), 1024) if rng.random() < 0.5 else len(raw)) if raw else 0


def _truncate(rng: Rng, raw: bytearray) -> None:
    del raw[_at(rng, raw) :]


def _extend(rng: Rng, raw: bytearray) -> None:
    raw += rng.randbytes(rng.choice((1, 8, 1000)))


def _flip(rng: Rng, raw: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        raw[_at(rng, raw)] ^= 1 << rng.randrange(8)


def _overwrite(rng: Rng, raw: bytearray) -> None:
    at, size = _at(rng, raw), rng.choice((1, 2, 4, 8, 64))
    raw[at : at + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size), b"9" * size, b" " * size))


def _move(rng: Rng, raw: bytearray) -> None:
    a, b, size = _at(rng, raw), _at(rng, raw), rng.randrange(1, 64)
    piece = raw[a : a + size]
    if rng.random() < 0.5:
        del raw[a : a + size]
    raw[b:b] = piece


def _length(rng: Rng, raw: bytearray) -> None:
    now = int.from_bytes(raw[:8], "little")
    number = rng.choice((*NUMBERS, now - 1, now + 1, now - 8, now + 8, len(raw) - 8, len(raw), len(raw) - 9))
    raw[:8] = (number % 2**64).to_bytes(8, "little")


def _weights(case: Case) -> str:
    return WEIGHTS if case.seed.folder else FILE


def _in_parts(change: Callable[[Rng, Parts], None]) -> Callable[[Rng, Case], None]:
    def mutate(rng: Rng, case: Case) -> None:
        parts = Parts.of(case.files[_weights(case)])
        change(rng, parts)
        case.rehashed = rng.random() < 0.75
        case.files[_weights(case)] = parts.join(case.rehashed)
        if case.rehashed and case.seed.folder:
            _rehash_folder(case)

    return mutate


def _rehash_folder(case: Case) -> None:
    """Makes a folder's hash right again, if its files can be read at all."""
    try:
        config, raw = json.loads(case.files[CONFIG]), case.files[WEIGHTS]
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        entries = {
            name: [entry["shape"], str(DTYPES[entry["dtype"]]), entry["data_offsets"][0]]
            for name, entry in header.items()
            if name != "__metadata__"
        }
        config["lightning_prune"].pop("sha256", None)
        plan = digest(case.files.get(PLAN, b""))
        text = canonical({"config": config, "plan": plan, "entries": entries})
        config["lightning_prune"]["sha256"] = digest(text, raw[8 + length :])
        case.files[CONFIG] = json.dumps(config).encode("utf-8", "surrogatepass")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return


def _lying_header(rng: Rng, parts: Parts) -> None:
    parts.header.pop("__metadata__", None)
    index = parts.header.pop("index", None)
    poke(rng, parts.header)
    if index is not None:
        parts.header["index"] = index


def _description(rng: Rng, parts: Parts) -> None:
    for _ in range(rng.choice((1, 1, 2))):
        poke(rng, parts.info or parts.header)


def _index(rng: Rng, parts: Parts) -> None:
    parts.packed = b""
    described = parts.index or parts.info or parts.header
    inner = described.get(rng.choice(("tensors", "plans", "plans", "aliases")))
    for _ in range(rng.choice((1, 1, 2, 3))):
        poke(rng, inner if isinstance(inner, dict) and inner else described)


def _giant_shape(rng: Rng, parts: Parts) -> None:
    """One tensor is said to be huge, wherever its shape stands."""
    tensors = (parts.index or parts.info or {}).get("tensors") or parts.header
    key = rng.choice([k for k in tensors if k != "__metadata__"])
    shape = tensors[key].get("shape") or [1]
    shape = [rng.choice((2**16, 2**20, 2**31, 2**40, 2**47)) if rng.random() < 0.6 else n for n in shape]
    tensors[key]["shape"] = shape
    for name in (key, f"{key}::values"):
        if name in parts.header:
            parts.header[name]["shape"] = shape
    parts.packed = b""
    if rng.random() < 0.5 and "nonzero" in tensors[key]:
        tensors[key]["nonzero"] = rng.choice((0, 2**20, 2**40))


def _other_network(rng: Rng, parts: Parts) -> None:
    """Another name, other arguments, another version of timm."""
    info = parts.info or {}
    what = rng.randrange(3)
    if what == 0:
        info["name"] = rng.choice((*NAMES, *PATHS))
    elif what == 1:
        key = rng.choice(("num_classes", "in_chans", "width", "img_size", "pretrained", "checkpoint_path", "no_such"))
        info["kwargs"] = {**(info.get("kwargs") or {}), key: rng.choice(VALUES)}
    else:
        info["versions"] = rng.choice(({"timm": "0.0.1"}, {"timm": "99.9"}, {}, None, "1.0", {"timm": [0] * 9}))


def _bomb(rng: Rng, parts: Parts) -> None:
    """Little that unpacks to much, or says so."""
    packed = [name for name in parts.header if name.endswith(".zstd")]
    if packed and rng.random() < 0.6:
        claim = b"\x28\xb5\x2f\xfd\xe0" + rng.choice((2**20, 2**40, 2**63)).to_bytes(8, "little") + b"\x01\0\0"
        parts.replace(rng.choice(packed), rng.choice((*ZSTD_BOMBS, claim, b"", b"zstd")))
    elif parts.index is not None:
        bomb = rng.choice(ZLIB_BOMBS)
        parts.packed = rng.choice((bomb, bomb, bomb[:-4], b"\x78\x9c" + rng.randbytes(50)))
    else:
        size = rng.choice((10**5, 10**9, 2**40))
        parts.header["more"] = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}


def _content(rng: Rng, parts: Parts) -> None:
    """Other masks, values and scales, under the right hash."""
    raw = bytearray(parts.data)
    for _ in range(rng.choice((1, 2, 16))):
        raw[rng.randrange(len(raw))] = rng.choice((0, 1, 2, 127, 128, 255, rng.randrange(256)))
    parts.data = bytes(raw)
    if parts.index is not None and rng.random() < 0.7:
        parts.packed = b""  # an index that is right


def _folder_json(rng: Rng, case: Case) -> None:
    name = rng.choice([name for name in (CONFIG, PLAN) if name in case.files])
    value = json.loads(case.files[name])
    for _ in range(rng.choice((1, 1, 2))):
        poke(rng, value.get("lightning_prune", value) if rng.random() < 0.5 else value)
    case.files[name] = dump(value).encode("utf-8", "surrogatepass")
    case.rehashed = rng.random() < 0.75
    if case.rehashed:
        _rehash_folder(case)


def _folder_files(rng: Rng, case: Case) -> None:
    """Links, pipes, folders and nothing where files were, and files in each other's place."""
    name = _some(rng, case)
    what = rng.choice(("outside", "zero", "pipe", "folder", "self", "missing", "swap", "dangling", "parent"))
    if what == "swap":
        other = _some(rng, case)
        case.files[name], case.files[other] = case.files[other], case.files[name]
    else:
        case.special[name] = what


MUTATIONS: dict[str, Callable[[Rng, Case], None]] = {
    "cut off": _on_bytes(_truncate),
    "longer": _on_bytes(_extend),
    "bits flipped": _on_bytes(_flip),
    "bytes overwritten": _on_bytes(_overwrite),
    "bytes moved": _on_bytes(_move),
    "length of the header": _on_bytes(_length),
    "header that lies": _in_parts(_lying_header),
    "description that lies": _in_parts(_description),
    "tensors and plans that lie": _in_parts(_index),
    "giant shape": _in_parts(_giant_shape),
    "other network or versions": _in_parts(_other_network),
    "bomb": _in_parts(_bomb),
    "other content": _in_parts(_content),
}
OF_FOLDERS = {"config or plan that lies": _folder_json, "links, pipes, mixed files": _folder_files}


def mutated(seed: Seed, rng: Rng) -> tuple[str, Case]:
    """A case and the name of what was done to it, sometimes twice over in bytes."""
    known = {**MUTATIONS, **OF_FOLDERS, **OF_FOLDERS} if seed.folder else MUTATIONS
    name = rng.choice(sorted(known) + (sorted(OF_FOLDERS) * 3 if seed.folder else []))
    case = Case(seed, dict(seed.files))
    known[name](rng, case)
    return name, case
