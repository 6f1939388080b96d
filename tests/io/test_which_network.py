"""Which network of a module is saved, and what it is rebuilt from."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.io import PrunedFileError, load_pruned, save_pruned
from tests.io.models import classifier, same_bits, thin


def test_a_classifiers_model_is_saved_and_filled(tmp_path: Path) -> None:
    inner = thin(timm.create_model("resnet18", num_classes=4, in_chans=1, global_pool="max"))
    module = classifier(
        inner, model_name="resnet18", num_classes=4, in_chans=1, model_kwargs={"global_pool": "max", "pretrained": True}
    )
    path = save_pruned(module, tmp_path / "m.safetensors")
    loaded = load_pruned(path)
    assert same_bits(inner.state_dict(), loaded.state_dict())
    assert loaded.global_pool.pool_type == "max"
    other = classifier(timm.create_model("resnet18", num_classes=4, in_chans=1), model_name="resnet18")
    assert load_pruned(path, other) is other
    assert same_bits(inner.state_dict(), other.model.state_dict())


def test_a_classifier_of_an_older_timm_tells_by_its_hparams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timm.models, "get_model_args")
    inner = timm.create_model("resnet20_cifar", num_classes=4, in_chans=2, width=6)
    del inner._model_args, inner.in_chans
    module = classifier(inner, model_name="resnet20_cifar", num_classes=4, in_chans=2, model_kwargs={"width": 6})
    assert same_bits(inner.state_dict(), load_pruned(save_pruned(module, tmp_path / "a.safetensors")).state_dict())
    with pytest.raises(PrunedFileError, match=r"conv1\.weight.*\(16, 2, 3, 3\).*\(6, 2, 3, 3\).*Pass kwargs="):
        save_pruned(inner, tmp_path / "b.safetensors")
    path = save_pruned(inner, tmp_path / "b.safetensors", kwargs={"width": 6})
    assert same_bits(inner.state_dict(), load_pruned(path).state_dict())


def test_what_torch_compile_wraps_is_saved(tmp_path: Path) -> None:
    model = timm.create_model("resnet20_cifar", width=4)
    path = save_pruned(torch.compile(model), tmp_path / "m.safetensors")  # type: ignore[arg-type]
    assert same_bits(model.state_dict(), load_pruned(path).state_dict())


def test_a_network_built_without_timms_factory_is_saved_by_name(tmp_path: Path) -> None:
    from lightning_prune.zoo.models import CifarResNet

    model = CifarResNet(3, width=8)
    path = save_pruned(model, tmp_path / "m.safetensors", name="resnet20_cifar", kwargs={"width": 8})
    assert same_bits(model.state_dict(), load_pruned(path).state_dict())
