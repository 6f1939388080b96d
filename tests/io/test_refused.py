"""What cannot be saved, or not be loaded again, is named, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.io import PrunedFileError, load_pruned, save_pruned


def test_a_module_of_no_registry_needs_a_module_to_fill(tmp_path: Path) -> None:
    path = save_pruned(nn.Linear(3, 2), tmp_path / "m.safetensors")
    with pytest.raises(PrunedFileError, match="Pass model="):
        load_pruned(path)
    with pytest.raises(PrunedFileError, match=r"'weight'.*\(2, 4\).*\(2, 3\)"):
        load_pruned(path, nn.Linear(4, 2))
    with pytest.raises(PrunedFileError, match="bias"):
        load_pruned(path, nn.Linear(3, 2, bias=False))
    with pytest.raises(PrunedFileError, match="no name"):
        save_pruned(nn.Linear(3, 2), tmp_path / "n.safetensors", kwargs={"width": 3})


def test_a_model_that_would_not_rebuild_is_not_saved(tmp_path: Path) -> None:
    changed = timm.create_model("resnet20_cifar")
    changed.layer2[0].conv1 = nn.Conv2d(16, 30, 3)
    wrong = [
        (changed, {}, r"layer2\.0\.conv1\.weight.*\(32, 16, 3, 3\).*\(30, 16, 3, 3\).*Pass kwargs="),
        (timm.create_model("resnet20_cifar"), {"kwargs": {"width": 5}}, r"conv1\.weight.*Pass kwargs="),
        (timm.create_model("resnet20_cifar"), {"kwargs": {"act_layer": nn.ReLU}}, "act_layer.*plain JSON"),
        (timm.create_model("resnet20_cifar"), {"kwargs": {"pretrained": True}}, "pretrained"),
        (timm.create_model("resnet18", act_layer=nn.SiLU), {}, "act_layer.*plain JSON"),
        (nn.Linear(2, 2), {"name": "hf-hub:timm/resnet18"}, "not a timm name"),
        (nn.Linear(2, 2), {"name": "resnet20_cifar"}, r"conv1\.weight"),
    ]
    for model, arguments, match in wrong:
        with pytest.raises(PrunedFileError, match=match):
            save_pruned(model, tmp_path / "m.safetensors", **arguments)
        assert list(tmp_path.iterdir()) == []
    named = timm.create_model("resnet18", act_layer=nn.SiLU)
    loaded = load_pruned(save_pruned(named, tmp_path / "m.safetensors", kwargs={"act_layer": "silu"}))
    assert isinstance(loaded.act1, nn.SiLU)


@pytest.mark.parametrize("tensor", [torch.zeros(3, dtype=torch.complex64), torch.zeros(3).to_sparse()])
def test_tensors_that_cannot_be_stored_are_named(tmp_path: Path, tensor: Tensor) -> None:
    module = nn.Module()
    module.register_buffer("odd", tensor)
    with pytest.raises(PrunedFileError, match="'odd'"):
        save_pruned(module, tmp_path / "m.safetensors")
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    with pytest.raises(PrunedFileError, match="meta"):
        save_pruned(empty, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
