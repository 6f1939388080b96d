"""Descriptions of format 1 that lie. The file was written by the code of before there was format 3."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict
from tests.io.tampering import OLD, Small, assert_refused, put_together, take_apart, write_raw

Change = Callable[[dict[str, Any], dict[str, Any]], Any]


@pytest.fixture(scope="module")
def good() -> Path:
    return OLD / "format1_small.safetensors"


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
        assert_refused(
            write_raw(tmp_path / "lie", header | {"__metadata__": metadata}, data), "not written by save_pruned"
        )


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
