"""Folders for the Hub: plain timm reads a sparse one, and says what to call for a compact one."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from torch import nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune import TimmClassifier, sparsity_report
from lightning_prune.channels import prune_channels
from lightning_prune.io import (
    PrunedFileError,
    load_pruned,
    pruned_info,
    pruned_state_dict,
    push_to_hub,
    save_pretrained,
    save_pruned,
)  # fmt: skip
from lightning_prune.io.format.bitmask import bits
from lightning_prune.plan.record import plan_of
from tests.channels.models import random_scores, randomise
from tests.io.models import same_bits, thin

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def sparse(width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return thin(randomise(timm.create_model("resnet20_cifar", width=width)), 0.8).eval()


def compact() -> nn.Module:
    """LTP's outcome on top of MRTS's: channels removed, and zeros in what is left."""
    return copy.deepcopy(_compact())


@functools.cache
def _compact() -> nn.Module:
    torch.manual_seed(0)
    model = randomise(timm.create_model("resnet20_cifar", width=6))
    prune_channels(model, IMAGES, scores=random_scores(model), ratio=0.3, form="eager", verify=False, min_channels=2)
    return thin(model, 0.8).eval()


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return same_bits(dict(sorted(a.items())), dict(sorted(b.items())))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet20_cifar", {"width": 6, "num_classes": 4, "in_chans": 1}),
        ("mobilenetv3_small_050", {"num_classes": 3}),
        ("vit_tiny_patch16_224", {"img_size": 32, "num_classes": 5}),
    ],
)
def test_plain_timm_reads_a_sparse_network_exactly(tmp_path: Path, name: str, kwargs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = thin(timm.create_model(name, **kwargs)).eval()
    folder = save_pretrained(model, tmp_path / "new" / "folder")
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    images = torch.randn(2, kwargs.get("in_chans", 3), 32, 32)
    means = []
    for read in (timm.create_model(f"local-dir:{folder}", pretrained=True), load_pruned(folder)):
        assert type(read) is type(model)
        assert same(read.state_dict(), model.state_dict())
        assert bits(read.eval()(images)).equal(bits(model(images)))
        means.append(list(read.pretrained_cfg["mean"]))
    assert means[0] == means[1]
    assert same(pruned_state_dict(f"local-dir:{folder}"), model.state_dict())


def test_a_compact_network_takes_its_plan_along(tmp_path: Path) -> None:
    model = compact()
    folder = save_pretrained(model, tmp_path / "folder")
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "model.safetensors", "README.md", "pruning_plan.json",
    }  # fmt: skip
    loaded = load_pruned(folder)
    assert loaded.training
    assert plan_of(loaded) == plan_of(model)
    assert bits(loaded.eval()(IMAGES)).equal(bits(model(IMAGES)))
    fresh = timm.create_model("resnet20_cifar", width=6)
    assert load_pruned(str(folder), fresh) is fresh
    assert same(fresh.state_dict(), model.state_dict())
    info = pruned_info(folder)
    assert info["compact"]
    assert info["sparsity"]["removed"] == sparsity_report(model).removed > 0
    assert save_pruned(loaded, tmp_path / "a").read_bytes() == save_pruned(model, tmp_path / "b").read_bytes()


@pytest.mark.parametrize("pretrained", [True, False])
def test_plain_timm_says_what_to_call_for_a_compact_one(tmp_path: Path, pretrained: bool) -> None:
    folder = save_pretrained(compact(), tmp_path / "folder")
    message = r"resnet20_cifar, made compact: load it with lightning_prune\.load_pruned\('hf-hub:owner/name', or this"
    with pytest.raises(RuntimeError, match=message):
        timm.create_model(f"local-dir:{folder}", pretrained=pretrained)


def test_saving_again_leaves_no_plan_behind(tmp_path: Path) -> None:
    save_pretrained(compact(), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    model = sparse()
    save_pretrained(model, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md", "notes.txt"}
    assert same(load_pruned(tmp_path).state_dict(), model.state_dict())


def test_a_classifier_and_tied_weights(tmp_path: Path) -> None:
    module = TimmClassifier("resnet20_cifar", num_classes=10, in_chans=3, model_kwargs={"width": 6})
    block = module.model.layer1
    block[1].conv2.weight = block[1].conv1.weight
    save_pretrained(module, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert same(loaded.state_dict(), module.model.state_dict())


def test_what_timm_cannot_describe_is_refused(tmp_path: Path) -> None:
    """The file keeps a name and arguments; timm's config also needs to know how images are prepared."""
    model = sparse()
    del model.pretrained_cfg["input_size"]
    with pytest.raises(PrunedFileError, match=r"timm cannot describe the model.*Use save_pruned"):
        save_pretrained(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_what_has_no_timm_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunedFileError, match="takes a timm model"):
        save_pretrained(nn.Linear(3, 2), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(PrunedFileError, match=r"it is a file.*use save_pruned"):
        save_pretrained(sparse(), tmp_path / "file")
    with pytest.raises(PrunedFileError, match=r"it is a folder.*use save_pretrained"):
        save_pruned(sparse(), tmp_path)


def test_class_names_and_preparation_come_back(tmp_path: Path) -> None:
    model = sparse()
    model.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), crop_pct=0.9, label_names=[f"class {i}" for i in range(10)])
    config = load_pruned(save_pretrained(model, tmp_path)).pretrained_cfg
    assert (config["mean"], config["crop_pct"]) == ((0.1, 0.2, 0.3), 0.9)
    assert config["label_names"] == model.pretrained_cfg["label_names"]
    assert timm.create_model("resnet20_cifar").pretrained_cfg["crop_pct"] == 1.0


def test_the_card_has_the_numbers(tmp_path: Path) -> None:
    model = compact()
    card = (
        save_pretrained(model, tmp_path, metrics={"accuracy | test": 0.9125, "data": "CIFAR-10"}) / "README.md"
    ).read_text()
    report = sparsity_report(model)
    size = sum((tmp_path / name).stat().st_size for name in ("model.safetensors", "pruning_plan.json"))
    assert card.startswith("---\nlibrary_name: lightning-prune\n")
    for row in (
        f"| parameters | {sum(p.numel() for p in model.parameters()):,} |",
        f"| conv and linear weights | {report.prunable:,} |",
        f"| of these zero | {report.zeros:,} ({report.sparsity:.2%}) |",
        f"| conv and linear weights before channels were removed | {report.prunable + report.removed:,} |",
        f"| weights' file and plan | {size:,} bytes |",
        "| accuracy \\| test | 0.9125 |",
        "| data | CIFAR-10 |",
    ):
        assert row in card


class FakeApi:
    """What is called of huggingface_hub.HfApi, and what would be uploaded."""

    def __init__(self, has_card: bool) -> None:
        self.has_card, self.calls, self.files = has_card, [], {}

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create_repo", options))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def file_exists(self, **options: Any) -> bool:
        self.calls.append(("file_exists", options))
        return self.has_card

    def upload_folder(self, folder_path: Path, **options: Any) -> str:
        self.calls.append(("upload_folder", options))
        self.files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        return "commit"


@pytest.mark.parametrize(("make", "has_card"), [(sparse, False), (compact, True)])
def test_push_uploads_the_folder(tmp_path: Path, make: Any, has_card: bool) -> None:
    api, model = FakeApi(has_card), make()
    assert push_to_hub(model, "net", private=True, revision="dev", api=api) == "commit"
    assert [name for name, _ in api.calls] == ["create_repo", "file_exists", "upload_folder"]
    assert api.calls[0][1] == {"private": True, "exist_ok": True}
    assert api.calls[2][1] == {
        "repo_id": "me/net",
        "revision": "dev",
        "commit_message": "Add a pruned model",
        "ignore_patterns": ["README.md"] if has_card else None,
        "delete_patterns": None if make is compact else ["pruning_plan.json"],
    }
    assert b"hf-hub:me/net" in api.files["README.md"]
    for name, content in api.files.items():
        (tmp_path / name).write_bytes(content)
    assert same(load_pruned(tmp_path).state_dict(), model.state_dict())


def test_nothing_is_created_for_a_model_that_cannot_be_saved() -> None:
    api = FakeApi(False)
    with pytest.raises(PrunedFileError):
        push_to_hub(nn.Linear(2, 2), "net", api=api)
    assert api.calls == []


def test_the_real_api_takes_these_arguments() -> None:
    import inspect

    for name, arguments in {
        "create_repo": {"private", "exist_ok"},
        "file_exists": {"repo_id", "filename", "revision"},
        "upload_folder": {"repo_id", "folder_path", "revision", "commit_message", "ignore_patterns", "delete_patterns"},
    }.items():
        assert arguments <= set(inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters)


def test_a_name_of_the_hub_is_downloaded_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a cache as huggingface_hub lays it out: a snapshot of links into a folder of blobs."""
    model, asked = compact(), []
    saved = save_pretrained(model, tmp_path / "saved")
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "cache" / "blobs").mkdir()
    for number, name in enumerate(("config.json", "model.safetensors", "pruning_plan.json")):
        (saved / name).rename(tmp_path / "cache" / "blobs" / str(number))
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))

    def fake(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options["revision"], options["allow_patterns"]))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    assert same(load_pruned("hf-hub:me/net@dev").state_dict(), model.state_dict())
    assert pruned_info("hf-hub:me/net")["compact"]
    files = ["config.json", "model.safetensors", "pruning_plan.json"]
    assert asked == [("me/net", "dev", files), ("me/net", None, files)]


def test_the_config_is_timms_and_one_field_more(tmp_path: Path) -> None:
    model = sparse()
    config = json.loads((save_pretrained(model, tmp_path / "ours") / "config.json").read_text())
    timm.models.save_for_hf(model, tmp_path / "theirs", safe_serialization=True)
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert set(config.pop("lightning_prune")) == {"format", "name", "kwargs", "versions", "sparsity", "sha256"}
    assert config == theirs
    remedy = r"not written by save_pretrained.*timm\.create_model\('local-dir:.*theirs', pretrained=True\)"
    with pytest.raises(PrunedFileError, match=remedy):
        load_pruned(tmp_path / "theirs")
