"""Files that are cut, damaged, or no pruned files at all: each gives PrunedFileError, and costs no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from tests.io.tampering import OLD, Small, assert_refused, put_together, take_apart

STEP = 7  # bytes from one damage to the next; tests.benchmarks.fuzz_files does many more


@pytest.fixture(scope="module", params=["old", "exact", "int8", "zstd"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "old":
        return OLD / "format1_small.safetensors"
    values, compress = {"exact": (None, None), "int8": ("int8", None), "zstd": (None, "zstd")}[request.param]
    path = tmp_path_factory.mktemp("good") / "small.safetensors"
    return save_pruned(Small(), path, values=values, compress=compress)


def test_the_files_own_parts_put_together_again_load(good: Path, tmp_path: Path) -> None:
    """The tools of this file do not break files by themselves."""
    path = put_together(tmp_path / "same", *take_apart(good))
    state = pruned_state_dict(path)
    assert all(state[key].equal(value) for key, value in Small().state_dict().items())
    assert set(take_apart(good)[1]["tensors"]["weight"]) > {"shape", "dtype"}


def test_a_truncation_is_noticed(good: Path, tmp_path: Path) -> None:
    raw = good.read_bytes()
    path = tmp_path / "cut"
    for size in {*range(0, len(raw), STEP), *range(12), *range(len(raw) - 12, len(raw))}:
        path.write_bytes(raw[:size])
        with pytest.raises(PrunedFileError):
            load_pruned(path, Small())
    path.write_bytes(raw + b"\0")
    with pytest.raises(PrunedFileError):
        load_pruned(path, Small())


def test_a_flipped_bit_is_noticed(good: Path, tmp_path: Path) -> None:
    raw = bytearray(good.read_bytes())
    path = tmp_path / "flip"
    model = Small()
    for position in (*range(8), *range(8, len(raw), STEP)):
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
