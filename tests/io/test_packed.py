"""Files of format 3 whose index or entries lie, with a correct hash: refused, before memory is taken."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from torch import nn

from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from tests.io.models import same_bits
from tests.io.tampering import Small, assert_refused, put_together, take_apart
from tests.memory import memory_below

Change = Callable[[dict[str, Any], dict[str, Any]], Any]
HUGE = 2**40


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pruned(Small(), tmp_path_factory.mktemp("good") / "small.safetensors")


def both() -> nn.Module:
    """A weight that is narrowed, sparse, and followed by a dense one."""
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 3))
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[0].weight[:, ::2] = 0
    return model


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pruned(both(), tmp_path_factory.mktemp("int8") / "small.safetensors", values="int8")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = nn.Linear(100, 100)
    with torch.no_grad():
        model.weight[:, ::2] = 0
    return save_pruned(model, tmp_path_factory.mktemp("zstd") / "small.safetensors", compress="zstd")


def test_the_entries_are_those_of_the_page(good: Path, int8: Path, packed: Path) -> None:
    """What the tampering below relies on."""
    assert set(take_apart(good)[0]) == {"__metadata__", "index", "masks", "F32", "I64", "BOOL"}
    assert set(take_apart(int8)[0]) == {"__metadata__", "index", "masks", "F32", "I8", "scales"}
    assert set(take_apart(packed)[0]) == {"__metadata__", "index", "masks.zstd", "F32.zstd"}
    assert take_apart(int8)[1]["tensors"]["0.weight"] == {
        "shape": [30, 40], "dtype": "F32", "stored": "I8", "nonzero": 600,
    }  # fmt: skip


def spec(key: str, **fields: Any) -> Change:
    return lambda header, info: info["tensors"][key].update(fields)


def many_tensors(header: dict[str, Any], info: dict[str, Any]) -> None:
    info["aliases"] = {f"t{i}": "bias" for i in range(50_001)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (spec("weight", shape=[HUGE, 7]), "'masks' does not fit"),
        (spec("bias", shape=[HUGE]), "'F32' does not fit"),
        (spec("bias", shape=[-3]), "no valid shape"),
        (spec("bias", shape=[3.0]), "no valid shape"),
        (spec("bias", shape=[True, 3]), "no valid shape"),
        (spec("bias", shape=[1] * 17), "no valid shape"),
        (spec("bias", shape=[2**49, 0]), "no valid shape"),
        (spec("bias", shape="3"), "no valid shape"),
        (spec("bias", dtype="F31"), "dtype"),
        (spec("bias", dtype=["F32"]), "dtype"),
        (spec("bias", dtype="I32"), "does not fit"),
        (spec("weight", nonzero=64), "no values or too many"),
        (spec("weight", nonzero=-1), "no values or too many"),
        (spec("weight", nonzero=None), "no values or too many"),
        (spec("weight", nonzero=2.0), "no values or too many"),
        (spec("weight", nonzero=HUGE), "no values or too many"),
        (spec("weight", nonzero=3), "'F32' does not fit"),
        (spec("bias", nonzero=3), "'masks' does not fit"),
        (spec("weight", stored="I8"), "does not fit"),
        (spec("weight", stored="U8"), "cannot be stored as 'U8'"),
        (spec("weight", stored="F32"), "cannot be stored as 'F32'"),
        (spec("weight", stored=None), "cannot be stored as None"),
        (spec("weight", stored={"x": "y" * 10**5}), "cannot be stored as"),
        (spec("bias", stored="F16"), "cannot be stored as"),
        (spec("count", stored="I8"), "cannot be stored as"),
        (spec("bias", more=1), "malformed"),
        (lambda h, i: i["tensors"].update(bias=7), "malformed"),
        (lambda h, i: i["tensors"]["bias"].pop("shape"), "malformed"),
        (lambda h, i: i["tensors"].pop("bias"), "does not fit"),
        (lambda h, i: i["tensors"].pop("flag"), "'BOOL' is not in the index"),
        (lambda h, i: i["tensors"].update(other={"shape": [1], "dtype": "F32"}), "does not fit"),
        (lambda h, i: i.update(tensors=[]), "no valid tensors"),
        (lambda h, i: i.update(aliases=None), "no valid tensors"),
        (lambda h, i: i.pop("plans"), "wrong fields"),
        (many_tensors, "no valid tensors"),
        (lambda h, i: i["aliases"].update(bias="weight"), "alias"),
        (lambda h, i: i["aliases"].update(other="none"), "alias"),
        (lambda h, i: i["aliases"].update(other=["bias"]), "alias"),
        (lambda h, i: i["aliases"].update(a="b", b="a"), "alias"),
        (lambda h, i: i.update(format=2), "wrong fields for format 2"),
        (lambda h, i: i.update(format=9), "format 9"),
        (lambda h, i: i.update(format="x" * 100_000), "format"),
        (lambda h, i: i.update(compression="lzma"), "compressed by 'lzma'"),
        (lambda h, i: i.update(compression=["zstd"]), "compressed by"),
        (lambda h, i: i.pop("name"), "wrong fields"),
        (lambda h, i: i.update(code="import os"), "wrong fields"),
        (lambda h, i: h["F32"].update(dtype="I32"), "'F32' does not fit"),
        (lambda h, i: h["F32"].update(shape=[5, 1]), "'F32' does not fit"),
        (lambda h, i: h.update(more=h.pop("masks")), "'masks' does not fit"),
        (
            lambda h, i: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
            "'more' is not in the index",
        ),
    ],
)
def test_an_index_that_lies_is_refused(good: Path, tmp_path: Path, change: Change, match: str) -> None:
    header, info, data = take_apart(good)
    original = json.dumps((header, info))
    change(header, info)
    assert json.dumps((header, info)) != original
    path = put_together(tmp_path / "lie", header, info, data)
    assert_refused(path, match, limit=2**26 if change is many_tensors else 2**21)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (b"", "cut off"),
        (b"nonsense", "cannot be unpacked"),
        (zlib.compress(b"{}")[:-1], "cut off"),
        (zlib.compress(b"{}") + b"more", "cut off"),
        (zlib.compress(b"{}"), "wrong fields"),
        (zlib.compress(b"[" * 60_000), "not valid JSON"),
        (zlib.compress(b'{"tensors": NaN}'), "not JSON"),
        (zlib.compress(b'{"plans": {}, "plans": {}}'), "twice"),
        (zlib.compress(b"\xff" * 9), "not valid JSON"),
        (zlib.compress(b" " * 10**8), "longer than the"),  # 100 MB in 100 KB
    ],
)
def test_an_index_that_is_none_is_refused(good: Path, tmp_path: Path, index: bytes, match: str) -> None:
    header, info, data = take_apart(good)
    assert_refused(put_together(tmp_path / "lie", header, info, data, index=index), match, limit=2**23)


def test_without_an_index(good: Path, tmp_path: Path) -> None:
    header, info, data = take_apart(good)
    header["other"] = header.pop("index")
    for key in ("tensors", "aliases", "plans"):
        info.pop(key)
    with pytest.raises(PrunedFileError, match="no index"):
        load_pruned(put_together(tmp_path / "lie", header, info, data))


@pytest.mark.parametrize(
    ("bit", "match"), [(0, "does not announce"), (63, "does not announce"), (None, "beyond its 63")]
)
def test_masks_that_do_not_fit_are_refused(good: Path, tmp_path: Path, bit: int | None, match: str) -> None:
    """A bit too many, and the right number of bits with one past the end."""
    header, info, data = take_apart(good)
    begin, changed = header["masks"]["data_offsets"][0], bytearray(data)
    if bit is None:
        changed[begin + (2 * 7 + 3) // 8] ^= 1 << (2 * 7 + 3) % 8
    changed[begin + (63 if bit is None else bit) // 8] |= 1 << (63 if bit is None else bit) % 8
    path = put_together(tmp_path / "mask", header, info, bytes(changed))
    with pytest.raises(PrunedFileError, match=match):
        pruned_state_dict(path)


def test_a_boolean_that_is_neither_is_refused(good: Path, tmp_path: Path) -> None:
    header, info, data = take_apart(good)
    changed = bytearray(data)
    changed[header["BOOL"]["data_offsets"][0]] = 2
    with pytest.raises(PrunedFileError, match="other bytes than 0 and 1"):
        load_pruned(put_together(tmp_path / "flag", header, info, bytes(changed)), Small())


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, -0.5])
def test_scales_are_finite_and_not_negative(int8: Path, tmp_path: Path, scale: float) -> None:
    header, info, data = take_apart(int8)
    begin, changed = header["scales"]["data_offsets"][0], bytearray(data)
    changed[begin : begin + 4] = torch.tensor(scale).numpy().tobytes()
    with pytest.raises(PrunedFileError, match="not a finite number"):
        pruned_state_dict(put_together(tmp_path / "scale", header, info, bytes(changed)))


def swap(path: Path, target: Path, name: str, content: bytes, **changes: Any) -> Path:
    """Replaces the last entry's bytes, or those of an entry of bytes, with the right hash."""
    header, info, data = take_apart(path)
    begin, end = header[name]["data_offsets"]
    grown = len(content) - (end - begin)
    for entry in (entry for key, entry in header.items() if key != "__metadata__"):
        entry["data_offsets"] = [n + grown if n >= end else n for n in entry["data_offsets"]]
    header[name].update(shape=[len(content)], data_offsets=[begin, begin + len(content)])
    info["tensors"]["weight"].update(changes)
    return put_together(target, header, info, data[:begin] + content + data[end:])


ZERO = b"\0"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "unpacked"),
        (b"nonsense" * 9, "unpacked"),
        (zstandard.compress(ZERO * 1249), "does not hold 1250 bytes"),
        (zstandard.compress(ZERO * 10**8), "does not hold 1250 bytes"),
        (zstandard.compress(ZERO * 1250)[:-3], "unpacked"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(ZERO * 1250), "does not hold 1250 bytes"),
        (zstandard.compress(ZERO * 1250), "does not announce"),
        # a frame header that claims 2^40 bytes
        (b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little") + b"\x01\0\0", "does not hold 1250 bytes"),
    ],
)
def test_a_frame_is_not_unpacked_to_more_than_was_asked_for(
    packed: Path, tmp_path: Path, content: bytes, match: str
) -> None:
    path = swap(packed, tmp_path / "lie", "masks.zstd", content)
    with memory_below(2**20), pytest.raises(PrunedFileError, match=match):
        pruned_state_dict(path)


def test_a_small_file_may_not_ask_for_large_tensors(packed: Path, tmp_path: Path) -> None:
    """A mask of 2^30 zeros is packed to 30 KB: all of it fits together, and would become 4 GB."""
    mask = zstandard.ZstdCompressor(level=1).compress(ZERO * 2**27)
    path = swap(packed, tmp_path / "bomb", "masks.zstd", mask, shape=[2**15, 2**15], nonzero=0)
    assert path.stat().st_size < 10**5
    with memory_below(2**21), pytest.raises(PrunedFileError, match=r"asks for tensors of 4\d{9}"):
        pruned_state_dict(path)


def test_the_files_own_parts_put_together_again_load(int8: Path, packed: Path, tmp_path: Path) -> None:
    for path in (int8, packed):
        again = put_together(tmp_path / "same", *take_apart(path))
        assert same_bits(pruned_state_dict(again), pruned_state_dict(path))
