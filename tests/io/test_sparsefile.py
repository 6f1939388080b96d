"""Files that are cut, damaged or made to do harm: each gives PrunedFileError, and costs no memory."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from lightning_prune.io.sparsefile import canonical
from tests.memory import memory_below

Change = Callable[[dict[str, Any], dict[str, Any]], Any]


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


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pruned(Small(), tmp_path_factory.mktemp("good") / "small.safetensors")


def take_apart(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    info = json.loads(header["__metadata__"]["lightning_prune"])
    return header, info, raw[8 + length :]


def put_together(path: Path, header: dict[str, Any], info: Any, data: bytes, rehash: bool = True) -> Path:
    """Writes a file with, if asked, the right hash: harm may come with one."""
    if rehash and isinstance(info, dict):
        info = {k: v for k, v in info.items() if k != "sha256"}
        sha256 = hashlib.sha256(canonical(info))
        for key in sorted(k for k in header if k != "__metadata__"):
            begin, end = header[key]["data_offsets"]
            sha256.update(data[begin:end])
        info["sha256"] = sha256.hexdigest()
    header["__metadata__"] = {"lightning_prune": json.dumps(info)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def assert_refused(path: Path, match: str = "", limit: int = 2**20) -> None:
    for read in (lambda: load_pruned(path, Small()), lambda: pruned_state_dict(path), lambda: load_pruned(path)):
        with memory_below(limit), pytest.raises(PrunedFileError, match=match) as caught:
            read()
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 1500 + len(str(path))


def test_the_files_own_parts_put_together_again_load(good: Path, tmp_path: Path) -> None:
    """The tools of this file do not break files by themselves."""
    path = put_together(tmp_path / "same", *take_apart(good))
    state = pruned_state_dict(path)
    assert all(state[key].equal(value) for key, value in Small().state_dict().items())
    assert take_apart(good)[1]["tensors"]["weight"] == {"shape": [9, 7], "dtype": "F32", "encoding": "sparse"}


def test_every_truncation_is_noticed(good: Path, tmp_path: Path) -> None:
    raw = good.read_bytes()
    path = tmp_path / "cut"
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(PrunedFileError):
            load_pruned(path, Small())
    path.write_bytes(raw + b"\0")
    with pytest.raises(PrunedFileError):
        load_pruned(path, Small())


def test_a_flipped_bit_in_any_byte_is_noticed(good: Path, tmp_path: Path) -> None:
    raw = bytearray(good.read_bytes())
    path = tmp_path / "flip"
    model = Small()
    for position in range(len(raw)):
        for bit in range(8) if position < 8 else (position % 8,):
            raw[position] ^= 1 << bit
            path.write_bytes(raw)
            raw[position] ^= 1 << bit
            with pytest.raises(PrunedFileError):
                load_pruned(path, model)
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), Small().state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "truncated"),
        (b"\xff" * 8, "truncated"),
        ((2**63).to_bytes(8, "little") + b"{}", "truncated"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((2).to_bytes(8, "little") + b"{}", "not written by save_pruned"),
        ((4).to_bytes(8, "little") + b"\xff\xfe{}", "not valid JSON"),
        ((100_000).to_bytes(8, "little") + b'{"a":' + b"[" * 99_995, "not valid JSON"),
        ((100_006).to_bytes(8, "little") + b'{"a":' + b"9" * 100_000 + b"}", "not valid JSON"),
        ((15).to_bytes(8, "little") + b'{"a":1, "a":2} ', "twice"),
        ((9).to_bytes(8, "little") + b'{"a":NaN}', "not JSON"),
        (b"PK\x03\x04" + b"\0" * 100, "truncated|needs"),  # torch.save
        (b"\x80\x02}q\0." + b"\0" * 50, "truncated|needs"),  # a pickle
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "junk"
    path.write_bytes(content)
    assert_refused(path, match)


def test_a_long_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long"
    with path.open("wb") as file:
        file.write((2**30).to_bytes(8, "little"))
        file.truncate(2**30 + 100)  # sparse on disk
    assert_refused(path, "header declares")


def test_a_plain_safetensors_file_is_told_apart(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "plain.safetensors")
    assert_refused(tmp_path / "plain.safetensors", r"not written by save_pruned.*load_file")


def test_a_pickled_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"state_dict": Trap()}, tmp_path / "trap.ckpt")
    assert_refused(tmp_path / "trap.ckpt")
    assert not (tmp_path / "executed").exists()


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_pruned(tmp_path / "none")
    assert_refused(tmp_path, "folder")


HUGE = 2**40


def set_entry(key: str, **fields: Any) -> Change:
    return lambda header, info: header[key].update(fields)


def set_spec(key: str, **fields: Any) -> Change:
    return lambda header, info: info["tensors"][key].update(fields)


def huge_both(header: dict[str, Any], info: dict[str, Any]) -> None:
    """Both JSONs agree on a tensor of 4 TB."""
    header["bias"]["shape"] = info["tensors"]["bias"]["shape"] = [HUGE]


def huge_sparse(header: dict[str, Any], info: dict[str, Any]) -> None:
    """A sparse tensor of 4 TB over the mask of a small one."""
    info["tensors"]["weight"]["shape"] = [HUGE, 7]


def many_tensors(header: dict[str, Any], info: dict[str, Any]) -> None:
    info["aliases"] = {f"t{i}": "bias" for i in range(50_001)}


def overlap(header: dict[str, Any], info: dict[str, Any]) -> None:
    begin = header["weight::values"]["data_offsets"][0]
    header["weight::values"]["data_offsets"] = [begin - 4, begin + 4]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (huge_both, "does not fill its place"),
        (huge_sparse, "does not fit the description"),
        (many_tensors, "no valid tensors"),
        (overlap, "overlap or leave a gap"),
        (set_entry("bias", shape=[4]), "does not fill"),
        (set_entry("bias", shape=[-3]), "no valid shape"),
        (set_entry("bias", shape=[True, 3]), "no valid shape"),
        (set_entry("bias", shape=[1] * 17), "no valid shape"),
        (set_entry("bias", shape=[2**49, 0]), "no valid shape"),
        (set_entry("bias", shape="3"), "no valid shape"),
        (set_entry("bias", dtype="F31"), "dtype"),
        (set_entry("bias", dtype=["F32"]), "dtype"),
        (set_entry("bias", dtype="I32"), "does not fit the description"),
        (set_entry("bias", shape=[3, 1]), "does not fit the description"),
        (set_entry("bias", data_offsets=[0, 10**30]), "no valid place"),
        (set_entry("bias", data_offsets=[12, 0]), "does not fill"),
        (set_entry("bias", data_offsets=[0.0, 12.0]), "no valid place"),
        (set_entry("bias", extra=1), "malformed"),
        (lambda h, i: h.update(bias=7), "malformed"),
        (lambda h, i: h.update(more={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}), "does not fit"),
        (set_spec("bias", shape=[4]), "does not fit"),
        (set_spec("bias", encoding="sparse"), "no values|does not fit"),
        (set_spec("bias", encoding="pickle"), "unknown encoding"),
        (set_spec("bias", encoding=["dense"]), "unknown encoding"),
        (set_spec("weight", encoding="dense"), "does not fit"),
        (set_spec("weight", shape=[1, 1]), "no values or too many"),
        (set_spec("bias", more=1), "malformed"),
        (lambda h, i: i["tensors"].pop("bias"), "does not fit"),
        (lambda h, i: i["tensors"].update(other={"shape": [1], "dtype": "F32", "encoding": "dense"}), "does not fit"),
        (lambda h, i: i.update(tensors=[]), "no valid tensors"),
        (lambda h, i: i.update(aliases=None), "no valid tensors"),
        (lambda h, i: i["aliases"].update(bias="weight"), "alias"),
        (lambda h, i: i["aliases"].update(other="none"), "alias"),
        (lambda h, i: i["aliases"].update(other=["bias"]), "alias"),
        (lambda h, i: i["aliases"].update(a="b", b="a"), "alias"),
        (lambda h, i: i.update(format=2), "format 2"),
        (lambda h, i: i.update(format="x" * 100_000), "format"),
        (lambda h, i: i.pop("name"), "wrong fields"),
        (lambda h, i: i.update(code="import os"), "wrong fields"),
    ],
)
def test_a_description_that_lies_is_refused(good: Path, tmp_path: Path, change: Change, match: str) -> None:
    header, info, data = take_apart(good)
    original = copy.deepcopy((header, info))
    change(header, info)
    assert (header, info) != original
    # the hash of the original: what is checked here must be checked before anything is read
    path = put_together(tmp_path / "lie", header, info, data, rehash=False)
    assert_refused(path, match, limit=2**26 if change is many_tensors else 2**21)


@pytest.mark.parametrize("info", [[], "text", None, 1])
def test_a_description_that_is_no_object_is_refused(good: Path, tmp_path: Path, info: Any) -> None:
    header, _, data = take_apart(good)
    assert_refused(put_together(tmp_path / "lie", header, info, data), "not a JSON object")


def test_metadata_that_is_no_text_is_refused(good: Path, tmp_path: Path) -> None:
    header, _, data = take_apart(good)
    for metadata in ({"lightning_prune": {}}, [], "x", None):
        header["__metadata__"] = metadata
        text = json.dumps(header).encode()
        (tmp_path / "lie").write_bytes(len(text).to_bytes(8, "little") + text + data)
        assert_refused(tmp_path / "lie", "not written by save_pruned")


@pytest.mark.parametrize(
    ("bit", "match"),
    [(0, "does not announce"), (62, "does not announce"), (63, "does not announce"), (None, "beyond its 63 elements")],
)
def test_masks_that_do_not_fit_are_refused(good: Path, tmp_path: Path, bit: int | None, match: str) -> None:
    """With a correct hash: a bit too many, and the right number of bits with one past the end."""
    header, info, data = take_apart(good)
    begin = header["weight::mask"]["data_offsets"][0]
    changed = bytearray(data)
    if bit is None:
        changed[begin + (2 * 7 + 3) // 8] ^= 1 << (2 * 7 + 3) % 8
        changed[begin + 7] |= 1 << 7
    else:
        changed[begin + bit // 8] |= 1 << bit % 8
    assert_refused_for_content(put_together(tmp_path / "mask", header, info, bytes(changed)), match)


def assert_refused_for_content(path: Path, match: str) -> None:
    for read in (lambda: load_pruned(path, Small()), lambda: pruned_state_dict(path)):
        with pytest.raises(PrunedFileError, match=match):
            read()


def test_a_boolean_that_is_neither_is_refused(good: Path, tmp_path: Path) -> None:
    header, info, data = take_apart(good)
    changed = bytearray(data)
    changed[header["flag"]["data_offsets"][0]] = 2
    assert_refused_for_content(
        put_together(tmp_path / "flag", header, info, bytes(changed)), "other bytes than 0 and 1"
    )


def test_damaged_values_are_noticed_by_the_hash(good: Path, tmp_path: Path) -> None:
    header, info, data = take_apart(good)
    changed = bytearray(data)
    changed[header["bias"]["data_offsets"][0] + 6] ^= 1
    path = put_together(tmp_path / "value", header, info, bytes(changed), rehash=False)
    assert_refused_for_content(path, "hash")
