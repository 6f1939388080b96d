"""Every recipe is parsed, and trains for a batch in each of its phases on small images in its data set's own form.

Deep networks are replaced by shallow or narrow ones with the same kinds of layers; ``-m sweep`` runs the whole ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from PIL import Image

from lightning_prune import ChannelPruning, WeightPruning, sparsity_report
from lightning_prune.callbacks import PruningCallback
from lightning_prune.cli.app import PruneCLI
from lightning_prune.recipes import recipe_names, recipe_path
from lightning_prune.zoo.classifier import TimmClassifier
from lightning_prune.zoo.data.module import ImageDataModule
from tests.zoo.data.files import write_cifar

SHALLOW = {
    "alexnet": ["--model.model_kwargs={hidden: 64}"],
    "resnet50": ["--model.model_kwargs={layers: [1, 1, 1, 1]}"],
    "resnet50.tv_in1k": ["--model.model_kwargs={layers: [1, 1, 1, 1]}"],
    "resnet56_cifar": ["--model.model_name=resnet20_cifar", "--model.model_kwargs={width: 8}"],
    "resnet20_cifar": ["--model.model_kwargs={width: 8}"],
    "vgg16_bn_cifar": ["--model.model_kwargs={width: 8}"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10, CIFAR-100 and a folder of 1,000 classes, with a few small images."""
    root = tmp_path_factory.mktemp("data")
    write_cifar(root, hundred=False)
    write_cifar(root, hundred=True)
    noise = np.random.default_rng(0).integers(0, 256, (80, 72, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "noise.png")
    for part, classes in (("train", 1000), ("val", 2)):
        for i in range(classes):
            folder = root / part / f"{i:03}"
            folder.mkdir(parents=True)
            (folder / "0.png").hardlink_to(root / "noise.png")
    return root


@pytest.fixture(autouse=True)
def _small_files_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares checksums with the originals'."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())


class Phases(Callback):
    """Notes the phase of every batch."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning, self.seen = pruning, []  # type: ignore[var-annotated]

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        assert self.pruning.phases is not None
        self.seen.append(self.pruning.phases.at(self.pruning.seen))


def read(name: str) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load(recipe_path(name).read_text())
    return recipe


def open_recipe(name: str, *options: str) -> PruneCLI:
    """The command line's objects for a recipe."""
    plain = [
        "--model.pretrained=false", "--trainer.accelerator=cpu", "--trainer.logger=false",
        "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    return PruneCLI(
        TimmClassifier, ImageDataModule, subclass_mode_data=True, run=False, save_config_callback=None,
        args=["--config", str(recipe_path(name)), *plain, *options],
    )  # fmt: skip


def short(name: str, data: Path, path: Path) -> tuple[list[str], list[str]]:
    """Options that make a recipe a batch of two images long in each of its phases, and those phases."""
    recipe = read(name)
    given = recipe["prune"]["init_args"]
    phases = [phase for phase in ("warmup", "sparsify", "finetune") if given[phase] != 0]
    options = [
        f"--trainer.max_epochs={len(phases)}", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1",
        "--trainer.num_sanity_val_steps=0", "--trainer.precision=32-true", f"--trainer.default_root_dir={path}",
        "--data.batch_size=2", "--data.num_workers=0", "--prune.recalibrate_batches=1",
        *(f"--prune.{phase}=1" for phase in phases),
    ]  # fmt: skip
    module = recipe["data"]["class_path"].split(".")[-1]
    if module != "DigitsDataModule":
        options.append(f"--data.root={data}")
    if module == "ImageFolderDataModule":
        options.append(f"--data.image_size={32 if 'resnet' in recipe['model']['model_name'] else 64}")
    if "score_batches" in given or "score" in given:
        options.append("--prune.score_batches=1")
    if given.get("steps", 1) > 1:
        options.append("--prune.steps=2")
    return options, phases


def run(name: str, data: Path, path: Path, network: list[str]) -> tuple[PruneCLI, dict[str, Any]]:
    """Trains a recipe, shortened, and checks what every recipe promises."""
    options, phases = short(name, data, path)
    cli = open_recipe(name, *options, *network)
    notes = Phases(cli.pruning)
    cli.trainer.callbacks.insert(0, notes)  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert notes.seen == phases
    assert cli.pruning.stage == "pruned"
    assert all(torch.isfinite(p).all() for p in cli.model.parameters())
    return cli, read(name)["prune"]["init_args"]


def check(name: str, data: Path, path: Path, network: list[str]) -> None:
    cli, given = run(name, data, path, network)
    if isinstance(cli.pruning, WeightPruning):
        sparsity = sparsity_report(cli.model).sparsity
        if given.get("mode") == "paper":  # without a target
            assert sparsity > 0
        else:
            target = given.get("target_sparsity", 1 - 1 / given.get("target_compression", 1))
            assert sparsity == pytest.approx(target, abs=1e-3)
    else:
        assert isinstance(cli.pruning, ChannelPruning)
        resource = next(key for key in given if key.startswith("target_")).removeprefix("target_")
        target = given[f"target_{resource}"]
        assert target - 0.1 < cli.pruning.numbers[resource] < target + 0.01


def test_every_recipe_is_parsed_as_it_stands() -> None:
    parser = open_recipe("digits_ltp").parser
    for name in recipe_names():
        recipe, config = read(name), parser.parse_path(recipe_path(name))
        assert config.prune.class_path == recipe["prune"]["class_path"]
        given = recipe["prune"]["init_args"]
        assert given.items() <= config.prune.init_args.as_dict().items()
        counted = [given[phase] for phase in ("warmup", "sparsify", "finetune")]
        assert any(not isinstance(n, int) for n in counted) or sum(counted) == config.trainer.max_epochs
        late = [epoch for epoch in config.model.lr_steps or {} if epoch >= config.trainer.max_epochs]
        assert not late, f"{name}: rates from epochs {late} on are never reached"


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_runs_through_its_phases(name: str, data: Path, tmp_path: Path) -> None:
    check(name, data, tmp_path, SHALLOW.get(read(name)["model"]["model_name"], []))


@pytest.mark.sweep
@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_runs_with_its_whole_network(name: str, data: Path, tmp_path: Path) -> None:
    check(name, data, tmp_path, [])
