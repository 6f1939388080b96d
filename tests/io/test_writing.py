"""Writing: in one step or not at all, and the model is left as it was."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import timm
from torch import nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.io import PrunedFileError, pruned_state_dict, save_pruned
from tests.io.models import same_bits, thin


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(PrunedFileError, match="folder"):
        save_pruned(nn.Linear(2, 2), tmp_path)


def test_writing_is_atomic_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    first = nn.Linear(2, 2)
    save_pruned(first, path)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask

    def broken(source: Any, target: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(OSError, match="no space"):
            save_pruned(nn.Linear(2, 2), path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert same_bits(first.state_dict(), pruned_state_dict(path))
    save_pruned(nn.Linear(5, 5), path)
    assert pruned_state_dict(path)["weight"].shape == (5, 5)


def test_saving_changes_nothing_and_repeats(tmp_path: Path) -> None:
    model = thin(timm.create_model("resnet20_cifar", width=8)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    a = save_pruned(model, tmp_path / "a").read_bytes()
    assert a == save_pruned(model, str(tmp_path / "b")).read_bytes()
    assert model.training
    assert same_bits(before, model.state_dict())
