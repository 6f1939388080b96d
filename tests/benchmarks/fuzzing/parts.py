"""A safetensors file taken apart and put together again, and JSON in which one place is changed."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from dataclasses import dataclass
from typing import Any

from lightning_prune.io.format.header import canonical

Rng = random.Random
DEEP, NAN, INF, DIGITS, TWICE = (f"@{name}@" for name in ("deep", "nan", "inf", "digits", "twice"))
RAW = {DEEP: "[" * 50_000 + "]" * 50_000, NAN: "NaN", INF: "1e999", DIGITS: "9" * 5000, TWICE: '{"a":1,"a":2}'}
PATHS = (
    "../../etc/passwd", "/dev/zero", "..", "", "a/../b", "hf-hub:a/b", "local-dir:/tmp", "file:///etc/passwd", "a\0b",
    "CON", "\ud800", "layer1..0", "__class__", "forward", "weight", "::mask",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 7, 8, 255, 256, 2**31 - 1, 2**31, 2**32, 2**40, 2**48, 2**49, 2**63, 2**64, 10**30, -(2**63))
VALUES: tuple[Any, ...] = (
    None, True, False, 0.5, -0.0, 1e300, [], {}, [[]], [0] * 1000, "x" * 5000, {"a": {"b": []}}, *RAW, *PATHS, *NUMBERS,
)  # fmt: skip


@dataclass
class Parts:
    """A safetensors file taken apart; index is None where it has none."""

    header: dict[str, Any]
    info: dict[str, Any] | None
    index: dict[str, Any] | None
    packed: bytes
    data: bytes

    @staticmethod
    def of(raw: bytes) -> Parts:
        length = int.from_bytes(raw[:8], "little")
        header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        text = header.get("__metadata__", {}).get("lightning_prune")
        packed = b""
        if "index" in header:
            begin, end = header["index"]["data_offsets"]
            packed = data[begin:end]
        index = json.loads(zlib.decompress(packed)) if packed else None
        return Parts(header, json.loads(text) if text else None, index, packed, data)

    def replace(self, name: str, content: bytes) -> None:
        """Puts other bytes where an entry of bytes was, and moves what is behind."""
        begin, end = self.header[name]["data_offsets"]
        self.data = self.data[:begin] + content + self.data[end:]
        for entry in self.header.values():
            offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
            if isinstance(offsets, list) and all(type(n) is int for n in offsets):
                entry["data_offsets"] = [n + len(content) - (end - begin) if n >= end else n for n in offsets]
        self.header[name].update(shape=[len(content)], data_offsets=[begin, begin + len(content)])

    def join(self, rehash: bool) -> bytes:
        """The bytes; with rehash, as if all of it was meant."""
        if self.index is not None:
            self.replace("index", self.packed or zlib.compress(dump(self.index).encode(), 1))
        if self.info is not None:
            info = dict(self.info)
            if rehash:
                info.pop("sha256", None)
                info["sha256"] = self._hash(info)
            self.header["__metadata__"] = {"lightning_prune": dump(info)}
        text = dump(self.header).encode("utf-8", "surrogatepass")
        return len(text).to_bytes(8, "little") + text + self.data

    def _hash(self, info: dict[str, Any]) -> str:
        try:
            sha256 = hashlib.sha256(canonical(json.loads(dump(info))))
        except (ValueError, RecursionError):  # no reader comes to the hash of that
            return ""
        if self.index is not None:
            sha256.update(self.data)
        else:
            for name in sorted(key for key in self.header if key != "__metadata__"):
                entry = self.header[name]
                if isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list):
                    begin, end = (entry["data_offsets"] + [0, 0])[:2]
                    if isinstance(begin, int) and isinstance(end, int):
                        sha256.update(self.data[begin:end])
        return sha256.hexdigest()


def dump(value: Any) -> str:
    """JSON in which the marks of `RAW` became what no JSON writer writes."""
    text = json.dumps(value)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text


def poke(rng: Rng, value: Any) -> None:
    """Changes one place, at random, of nested dicts and lists."""
    if not isinstance(value, dict | list) or not value:  # an earlier change left nothing to go into
        return
    while True:
        inner = [v for v in (value.values() if isinstance(value, dict) else value) if isinstance(v, dict | list) and v]
        if not inner or rng.random() < 0.25:
            break
        value = rng.choice(inner)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, kind = rng.choice(keys), rng.randrange(6)
    old = value[key]
    if kind == 0:
        del value[key]
    elif kind == 1 and isinstance(value, dict):
        value[rng.choice((*PATHS, "x" * 3000))] = value.pop(key)
    elif kind == 2 and isinstance(value, list):
        value.append(old)
    elif kind == 3 and type(old) is int:
        value[key] = rng.choice((old + 1, old - 1, old * 2, old * 1000, -old, float(old), str(old)))
    elif kind == 4 and isinstance(old, list):
        rng.shuffle(old)
    else:
        value[key] = rng.choice(VALUES)
