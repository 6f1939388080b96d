"""Folders that are incomplete, mixed, or made to do harm: PrunedFileError, and nothing outside of them is read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pretrained
from tests.io.test_hub import compact, sparse

FILES = ("config.json", "model.safetensors", "pruning_plan.json")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(compact(), tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "folder"))


def assert_refused(folder: Path, match: str) -> None:
    for read in (load_pruned, pruned_state_dict):
        with pytest.raises(PrunedFileError, match=match) as caught:
            read(folder)
        assert str(folder) in str(caught.value)
        assert len(str(caught.value)) < 1500 + len(str(folder))


@pytest.mark.parametrize("name", FILES[:2])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_refused(folder, f"it has no {name}")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_model_is_noticed(folder: Path, name: str, tmp_path: Path) -> None:
    """Without its plan too: the shapes may fit, but nothing says that the files belong together."""
    other = compact()
    with torch.no_grad():
        other.conv1.weight.add_(1)
    save_pretrained(other if name != "pruning_plan.json" else sparse(), tmp_path / "other")
    if name == "pruning_plan.json":
        (folder / name).unlink()
    else:
        shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(PrunedFileError):
        load_pruned(folder)
    with pytest.raises(PrunedFileError, match="do not belong together"):
        pruned_state_dict(folder)


@pytest.mark.parametrize("name", FILES)
def test_links_out_of_the_folder_are_not_followed(folder: Path, name: str, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    assert_refused(folder, f"{name}: it is a link to .*outside, outside of the folder")
    (folder / name).unlink()
    (folder / name).symlink_to("../folder/../outside")
    assert_refused(folder, "outside of the folder")
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    assert_refused(folder, f"no {name} that can be read")
    (folder / name).unlink()
    (tmp_path / "outside").rename(folder / "inside")
    (folder / name).symlink_to("inside")
    assert len(pruned_state_dict(folder)) > 100


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_not_opened(folder: Path, name: str) -> None:
    """A pipe that nobody writes to would be waited for."""
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert_refused(folder, "not a regular file")
    (folder / name).unlink()
    (folder / name).mkdir()
    assert_refused(folder, "it is a folder")


def test_pipes_and_bad_paths_are_refused_as_files_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, match in ((tmp_path / "pipe", "not a regular file"), ("/dev/zero", "not a regular"), ("a\0b", "no path")):
        with pytest.raises(PrunedFileError, match=match):
            load_pruned(path)


@pytest.mark.parametrize("name", [FILES[0], FILES[2]])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not valid JSON|do not belong"),
        (b"[]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": 1e999}', "not JSON"),
        (b'{"a": ' * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b" " * (8 * 2**20 + 1), "bytes long, more than"),
    ],
)
def test_json_that_is_none_is_refused(folder: Path, name: str, content: bytes, match: str) -> None:
    (folder / name).write_bytes(content)
    if content:
        assert_refused(folder, match)
    else:
        with pytest.raises(PrunedFileError):
            load_pruned(folder)


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c["lightning_prune"].update(format=2), "format 2, not 1. A newer"),
        (lambda c: c["lightning_prune"].update(format=True), "malformed"),
        (lambda c: c["lightning_prune"].update(code="import os"), "malformed"),
        (lambda c: c["lightning_prune"].update(name=None), "no timm name"),
        (lambda c: c.update(lightning_prune=[]), "malformed"),
        (lambda c: c.update(pretrained_cfg=7), "'pretrained_cfg' is not an object"),
        (lambda c: c["pretrained_cfg"].update(mean=["x"]), "'mean' is not what timm has"),
        (lambda c: c["pretrained_cfg"].update(std=[[0.1]]), "'std' is not what timm has"),
        (lambda c: c["pretrained_cfg"].update(input_size=[2**40] * 3), "'input_size' is not"),
        (lambda c: c["pretrained_cfg"].update(interpolation="x" * 1000), "'interpolation' is not"),
        (lambda c: c.update(label_names=[{}]), "'label_names' is not"),
        (lambda c: c["lightning_prune"].update(sparsity={"sparsity": 1.0}), "do not have the hash"),
        (lambda c: c["pretrained_cfg"].update(mean=[0, 0, 0]), "do not have the hash"),
        (lambda c: c.update(extra=1), "do not have the hash"),
    ],
)
def test_a_config_that_lies_is_refused(folder: Path, change: Change, match: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(folder, match)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("hf-hub:evil/model", "not a timm name"),
        ("local-dir:/tmp", "not a timm name"),
        ("../../etc/passwd", "not a timm name"),
        ("no_such_model", "has no model"),
        (7, "not a timm name"),
    ],
)
def test_a_name_leads_nowhere_else(folder: Path, name: Any, match: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["lightning_prune"]["name"] = name
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PrunedFileError, match=match):
        load_pruned(folder)


def test_the_weights_need_no_more_than_they_have(folder: Path) -> None:
    raw = bytearray((folder / "model.safetensors").read_bytes())
    for cut in (0, 7, 100, len(raw) - 1):
        (folder / "model.safetensors").write_bytes(raw[:cut])
        assert_refused(folder, "truncated|valid JSON")
    raw[-3] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(PrunedFileError, match="do not have the hash"):
        load_pruned(folder)
