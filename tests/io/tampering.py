"""Files taken apart, changed, and put together again."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict
from lightning_prune.io.format.header import canonical
from tests.memory import memory_below

OLD = Path(__file__).parent / "old"  # written by the code of before there was format 3


class Small(nn.Module):
    """One tensor that is stored sparse, one dense, one boolean, one integer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(9, 7))
        self.bias = nn.Parameter(torch.arange(3.0))
        self.register_buffer("flag", torch.tensor([True, False]))
        self.register_buffer("count", torch.tensor(5))
        with torch.no_grad():
            self.weight[2, 3:5] = 1.5


def take_apart(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The container's header, the description with what the index adds to it, and the data (as they are)."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    info = json.loads(header["__metadata__"]["lightning_prune"])
    if "index" in header:
        begin, end = header["index"]["data_offsets"]
        info |= json.loads(zlib.decompress(data[begin:end]))
    return header, info, data


def put_together(
    path: Path, header: dict[str, Any], info: Any, data: bytes, rehash: bool = True, index: bytes | None = None
) -> Path:
    """Writes a file with, if asked, the right hash: harm may come with one. index: its packed bytes, if not info's."""
    if "index" in header:
        begin, end = header["index"]["data_offsets"]
        rest = {key: info.pop(key) for key in ("tensors", "aliases", "plans") if key in info}
        packed = zlib.compress(json.dumps(rest).encode(), 0) if index is None else index
        data = data[:begin] + packed + data[end:]
        grown = len(packed) - (end - begin)
        header = {key: dict(entry) if isinstance(entry, dict) else entry for key, entry in header.items()}
        for key, entry in header.items():
            if key != "__metadata__" and isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list):
                entry["data_offsets"] = [n + grown if n >= end else n for n in entry["data_offsets"]]
        header["index"] |= {"shape": [len(packed)], "data_offsets": [begin, begin + len(packed)]}
    if rehash and isinstance(info, dict):
        info = {key: value for key, value in info.items() if key != "sha256"}
        sha256 = hashlib.sha256(canonical(info))
        names = sorted(key for key in header if key != "__metadata__")
        for begin, end in (header[name]["data_offsets"] for name in names) if "index" not in header else [(0, None)]:
            sha256.update(data[begin:end])
        info["sha256"] = sha256.hexdigest()
    return write_raw(path, {**header, "__metadata__": {"lightning_prune": json.dumps(info)}}, data)


def write_raw(path: Path, header: Any, data: bytes) -> Path:
    """A container of any header."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def assert_refused(path: Path, match: str | None = None, limit: int = 2**20) -> None:
    """However it is read, a file raises the one exception, names itself, and takes no memory."""
    for read in (lambda: load_pruned(path, Small()), lambda: pruned_state_dict(path), lambda: load_pruned(path)):
        with memory_below(limit), pytest.raises(PrunedFileError, match=match) as caught:
            read()
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 1500 + len(str(path))
