"""Compact models in files: loaded is saved, bit for bit, in this process and in another."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune import TimmClassifier, sparsity_report
from lightning_prune.channels import prune_channels
from lightning_prune.io import PrunedFileError, load_pruned, pruned_info, pruned_state_dict, save_pruned
from lightning_prune.io.format.bitmask import bits
from lightning_prune.io.format.sparsefile import read_header
from lightning_prune.plan.record import plan_of, plans_of
from tests.channels.models import Branches, random_scores, randomise
from tests.io.models import classifier, same_bits, thin

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def prune(model: nn.Module, seed: int = 0, form: str = "eager", ratio: float = 0.3) -> nn.Module:
    scores = random_scores(model, seed)
    prune_channels(model, IMAGES, scores=scores, ratio=ratio, form=form, verify=False, min_channels=2)
    return model


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(timm.create_model("resnet20_cifar", width=6), seed)


def assert_same(loaded: nn.Module, saved: nn.Module) -> None:
    assert type(loaded) is type(saved)
    assert same_bits(saved.state_dict(), loaded.state_dict())
    assert plans_of(loaded) == plans_of(saved)
    with torch.no_grad():
        assert bits(loaded.eval()(IMAGES)).equal(bits(saved.eval()(IMAGES)))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mixnet_s"])
def test_a_compact_and_sparse_model_comes_back(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    dense = randomise(timm.create_model(name, num_classes=10))
    model = thin(prune(copy.deepcopy(dense)), 0.8)
    path = save_pruned(model, tmp_path / "m.safetensors")
    loaded = load_pruned(path)
    assert loaded.training
    assert_same(loaded, model)
    header = read_header(path)
    assert any(spec.sparse for spec in header.tensors.values())
    report = sparsity_report(model)
    assert header.info["sparsity"] == {
        "prunable": report.prunable,
        "zeros": report.zeros,
        "sparsity": report.sparsity,
        "compression": report.compression,
        "removed": report.removed,
    }
    assert report.sparsity == pytest.approx(0.8, abs=0.01)
    assert report.prunable + report.removed == sparsity_report(dense).prunable
    assert f"{report.prunable:,} of {report.prunable + report.removed:,} prunable weights are left" in str(report)
    again = load_pruned(path, loaded)  # compact already
    assert again is loaded
    assert_same(again, model)
    assert_same(load_pruned(path, dense), model)


def test_a_rewritten_graph_comes_back(tmp_path: Path) -> None:
    model = prune(tiny(), form="graph")
    assert plan_of(model).form == "graph"
    loaded = load_pruned(save_pruned(model, tmp_path / "m.safetensors"))
    assert_same(loaded, model)
    plan_of(loaded).undo(loaded)
    assert type(loaded) is type(tiny())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_rewritten_graph_converted_to_another_width(tmp_path: Path, when: str) -> None:
    model = randomise(Branches())
    images = IMAGES.bfloat16()
    if when == "before":
        prune_channels(model.bfloat16(), images, scores=random_scores(model), ratio=0.3, form="graph", verify=False)
    else:
        prune(model, form="graph").bfloat16()
    loaded = load_pruned(save_pruned(model, tmp_path / "m.safetensors"), Branches()).eval()
    assert same_bits(loaded.state_dict(), model.state_dict())
    assert bits(loaded(images)).equal(bits(model(images)))


def test_pruned_twice(tmp_path: Path) -> None:
    model = prune(prune(tiny()), seed=5)
    assert_same(load_pruned(save_pruned(model, tmp_path / "m.safetensors")), model)


def test_a_classifiers_compact_network(tmp_path: Path) -> None:
    module = TimmClassifier("resnet20_cifar", num_classes=10, in_chans=3, model_kwargs={"width": 6})
    randomise(module)
    prune_channels(module, IMAGES, scores=random_scores(module), ratio=0.3, verify=False, form="eager")
    path = save_pruned(module, tmp_path / "m.safetensors")
    inner = plan_of(module).below("model")
    loaded = load_pruned(path)
    assert plan_of(loaded) == inner
    assert same_bits(loaded.state_dict(), module.model.state_dict())
    assert bits(loaded.eval()(IMAGES)).equal(bits(module.eval()(IMAGES)))
    assert (
        sparsity_report(loaded).removed
        == sparsity_report(module).removed
        == read_header(path).info["sparsity"]["removed"]
    )
    assert load_pruned(path, module) is module  # compact already, though the record stands around the network
    fresh = TimmClassifier("resnet20_cifar", num_classes=10, in_chans=3, model_kwargs={"width": 6})
    assert load_pruned(path, fresh) is fresh
    assert plan_of(fresh) == inner
    assert bits(fresh.eval()(IMAGES)).equal(bits(module(IMAGES)))
    save_pruned(fresh, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


FRESH = """
import sys, torch
from lightning_prune import load_pruned
torch.set_num_threads(1)
images = torch.load(sys.argv[1] + "/images.pt", weights_only=True)
with torch.no_grad():
    torch.save(load_pruned(sys.argv[1] + "/m.safetensors").eval()(images), sys.argv[1] + "/out.pt")
"""


def test_a_fresh_process_computes_the_same(tmp_path: Path) -> None:
    model = thin(prune(tiny())).eval()
    save_pruned(model, tmp_path / "m.safetensors")
    torch.save(IMAGES, tmp_path / "images.pt")
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path)], check=True, timeout=300)
    with torch.no_grad():
        assert bits(torch.load(tmp_path / "out.pt", weights_only=True)).equal(bits(model(IMAGES)))


def test_modules_of_no_registry_take_the_plan_of_the_file(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return randomise(nn.ModuleDict({"a": Branches(), "b": Branches()}))

    outer = make()
    for seed, part in enumerate(outer.values()):
        prune(part, seed, form=("eager", "graph")[seed])
    path = save_pruned(outer, tmp_path / "m.safetensors")
    loaded = load_pruned(path, make())
    assert same_bits(loaded.state_dict(), outer.state_dict())
    assert list(plans_of(loaded)) == ["a", "b"]
    for name, part in outer.items():
        assert_same(loaded[name], part)
    with pytest.raises(PrunedFileError, match="Pass model="):
        load_pruned(path)
    with pytest.raises(PrunedFileError, match=r"'a'.*does not have"):
        load_pruned(path, Branches())


def test_dense_files_and_compact_modules_do_not_mix(tmp_path: Path) -> None:
    dense, model, other = tiny(), prune(tiny()), prune(tiny(), seed=3)
    files = {name: save_pruned(m, tmp_path / name) for name, m in (("dense", dense), ("compact", model))}
    assert [pruned_info(files[kind])["compact"] for kind in ("dense", "compact")] == [False, True]
    before = {k: v.clone() for k, v in other.state_dict().items()}
    for file, match in (("dense", "was dense when the file was saved"), ("compact", "another pruning plan")):
        with pytest.raises(PrunedFileError, match=match + r".*plan_of\(model\)\.undo\(model\)"):
            load_pruned(files[file], other)
    assert same_bits(other.state_dict(), before)
    plan_of(other).undo(other)
    assert_same(load_pruned(files["dense"], copy.deepcopy(other)), dense)
    assert_same(load_pruned(files["compact"], other), model)
    assert same_bits(pruned_state_dict(files["compact"]), model.state_dict())


def test_a_module_that_does_not_fit_is_not_cut(tmp_path: Path) -> None:
    path = save_pruned(prune(tiny()), tmp_path / "m.safetensors")
    for wrong in (
        timm.create_model("resnet20_cifar", width=8),
        timm.create_model("resnet20_cifar", width=6, num_classes=3),
        Branches(),
    ):
        shapes = {k: v.shape for k, v in wrong.state_dict().items()}
        with pytest.raises(PrunedFileError, match=r"expects|saved|does not have"):
            load_pruned(path, wrong)
        assert shapes == {k: v.shape for k, v in wrong.state_dict().items()}
        assert plan_of(wrong) is None


def test_a_compact_model_that_would_not_rebuild_is_not_saved(tmp_path: Path) -> None:
    changed = prune(tiny())
    changed.head.fc = nn.Linear(changed.head.fc.in_features + 1, 10)
    nested = prune(tiny())
    prune_channels(nested.layer1[0], torch.randn(2, nested.conv1.out_channels, 8, 8), verify=False, form="eager",
                   keep={"bn1": [0]})  # fmt: skip
    batch: dict[str, Any] = {"scores": random_scores(tiny()), "ratio": 0.3, "form": "eager", "verify": False}
    large = tiny()
    prune_channels(large, torch.zeros(1, 3, 32, 32).expand(8000, 3, 32, 32), **batch)
    for model, match in (
        (changed, r"head\.fc\.weight"),
        (nested, r"'layer1\.0' was made compact by itself"),
        (large, "smaller batch"),
        (classifier(prune(tiny()), model_name="resnet20_cifar", model_kwargs={"width": 9}), "expects"),
    ):
        with pytest.raises(PrunedFileError, match=match):
            save_pruned(model, tmp_path / "m.safetensors")
        assert list(tmp_path.iterdir()) == []
