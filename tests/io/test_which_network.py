"""Which network of a module is saved, and what it is rebuilt from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning
import timm
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.channels import prune_channels
from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from lightning_prune.io.format.sparsefile import read_header
from lightning_prune.plan.record import plan_of
from tests.channels.models import random_scores, randomise
from tests.io.models import classifier, same_bits, thin


class Outside:
    """A user's own module around a network, with a loss that has a buffer."""

    def __init__(self, network: nn.Module, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = network
        self.loss = nn.CrossEntropyLoss(torch.ones(10)) if loss is None else loss

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.backbone(x)
        return out


class Around(Outside, LightningModule):
    """It in one of Lightning's packages."""


class Standalone(Outside, pytorch_lightning.LightningModule):
    """It in the other."""


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(timm.create_model("resnet20_cifar", width=6), seed)


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


@pytest.mark.parametrize(
    ("around", "wrap"),
    [(Around, lambda m: m), (Around, nn.Sequential), (Around, torch.compile), (Standalone, lambda m: m)],
    ids=["plain", "deeper", "compiled", "standalone"],
)
def test_the_timm_network_of_any_lightning_module_is_saved(
    tmp_path: Path, around: Callable[[nn.Module], nn.Module], wrap: Callable[[nn.Module], nn.Module]
) -> None:
    network = thin(small())
    path = save_pruned(around(wrap(network)), tmp_path / "m.safetensors")
    loaded = load_pruned(path)
    assert type(loaded) is type(network)
    assert same_bits(loaded.state_dict(), network.state_dict())
    other = around(wrap(small(1)))
    assert load_pruned(path, other) is other
    assert same_bits(load_pruned(save_pruned(other, path)).state_dict(), network.state_dict())


@pytest.mark.parametrize("inner", [True, False])
def test_a_compact_network_of_any_lightning_module_comes_back(tmp_path: Path, inner: bool) -> None:
    module = Around(small())
    part = module.backbone if inner else module
    prune_channels(part, torch.randn(2, 3, 32, 32), scores=random_scores(part), ratio=0.3, verify=False, form="eager")
    assert plan_of(module) is not None
    loaded = load_pruned(save_pruned(module, tmp_path / "m.safetensors"))
    assert same_bits(loaded.state_dict(), module.backbone.state_dict())


def test_a_module_whose_network_is_not_found_is_saved_as_it_is(tmp_path: Path) -> None:
    with_head = Around(small(), loss=nn.Linear(2, 2))
    for module in (with_head, Around(nn.Linear(3, 2)), nn.Sequential(small(), nn.Softmax(1))):
        path = save_pruned(module, tmp_path / "m.safetensors")
        assert read_header(path).info["name"] is None
        assert same_bits(pruned_state_dict(path), module.state_dict())


def test_a_network_that_was_changed_is_saved_without_its_name(tmp_path: Path) -> None:
    module, other = Around(small()), Around(small(1))
    for each in (module, other):
        each.backbone.head.fc = nn.Linear(24, 7)
    with pytest.warns(UserWarning, match=r"without a timm name .*head\.fc\.weight.*kwargs=.*model="):
        path = save_pruned(module, tmp_path / "m.safetensors")
    with pytest.raises(PrunedFileError, match="Pass model="):
        load_pruned(path)
    load_pruned(path, other)
    assert same_bits(other.backbone.state_dict(), module.backbone.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = load_pruned(save_pruned(module, path, kwargs={"num_classes": 7}))
    assert same_bits(named.state_dict(), module.backbone.state_dict())
    with pytest.raises(PrunedFileError, match="Pass kwargs="):
        save_pruned(module, path, kwargs={"num_classes": 8})
    prune_channels(module, torch.randn(2, 3, 32, 32), scores=random_scores(module), ratio=0.3, verify=False)
    with pytest.warns(UserWarning, match="without a timm name"):
        save_pruned(module, path)
    load_pruned(path, other)
    assert same_bits(other.backbone.state_dict(), module.backbone.state_dict())
