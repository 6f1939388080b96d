"""Every recipe is parsed, and trains for a batch in each of its phases on small images in its data set's own form.

Deep networks are replaced by shallow or narrow ones with the same kinds of layers; ``-m sweep`` runs the whole ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import nn

from lightning_prune import WeightPruning, sparsity_report
from lightning_prune.callbacks import PruningCallback
from lightning_prune.cli.commands.fit import FitCLI
from lightning_prune.recipes import recipe_names, recipe_path
from tests.zoo.data.files import write_cifar

SHALLOW = {
    "alexnet": ["--model.model_kwargs={hidden: 64}"],
    "resnet50": ["--model.model_kwargs={layers: [1, 1, 1, 1], channels: [16, 32, 64, 128]}"],
    "resnet56_cifar": ["--model.model_name=resnet20_cifar", "--model.model_kwargs={width: 8}"],
    "resnet20_cifar": ["--model.model_kwargs={width: 8}"],
    "vgg16_bn_cifar": ["--model.model_kwargs={width: 8}"],
    "character_transformer": ["--model.model_kwargs={width: 64, length: 16}"],
    "deit_tiny_patch16_224": ["--model.model_kwargs={img_size: 64, depth: 1}"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10, CIFAR-100 and a folder of 1,000 classes, with a few small images; and a text for enwik8."""
    root = tmp_path_factory.mktemp("data")
    (root / "enwik8").write_text("a text of some words. " * 100)
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


def open_recipe(name: str, *options: str) -> FitCLI:
    """The command line's objects for a recipe."""
    plain = [
        "--model.pretrained=false", "--trainer.accelerator=cpu", "--trainer.logger=false",
        "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    given = ["--config", str(recipe_path(name)), *plain, *options]
    return FitCLI(given, run=False, save_config_callback=None)


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    """Every recipe, parsed as it stands, with the defaults of what it does not say."""
    parser = open_recipe("digits_ltp").parser
    return {name: parser.parse_path(recipe_path(name)) for name in recipe_names()}


def network_of(recipe: Any) -> list[str]:
    """Options for a small network of the recipe's kind, where there is one."""
    return SHALLOW.get(recipe.model.model_name.split(".")[0], [])


def lasting(recipe: Any) -> list[str]:
    """The phases that the recipe has."""
    return [phase for phase in ("warmup", "sparsify", "finetune") if recipe.prune.init_args[phase] != 0]


def short(recipe: Any, data: Path, path: Path) -> list[str]:
    """Options that make a recipe a batch of two images long in each of its phases."""
    given = recipe.prune.init_args
    options = [
        f"--trainer.max_epochs={len(lasting(recipe))}", "--trainer.limit_train_batches=1",
        "--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0", "--trainer.precision=32-true",
        f"--trainer.default_root_dir={path}", "--data.batch_size=2", "--data.num_workers=0",
        *(f"--prune.{phase}=1" for phase in lasting(recipe)),
    ]  # fmt: skip
    small = {"recalibrate_batches": 1, "score_batches": 1, "steps": min(2, given.get("steps") or 1)}
    options += [f"--prune.{name}={value}" for name, value in small.items() if name in given]
    module = recipe.data.class_path.split(".")[-1]
    if module != "DigitsDataModule":
        options.append(f"--data.root={data}")
    if module == "CharactersDataModule":
        options.append("--data.length=16")
    if module == "ImageFolderDataModule":
        options.append(f"--data.image_size={32 if 'resnet' in recipe.model.model_name else 64}")
    return options


def run(name: str, recipe: Any, data: Path, path: Path, network: list[str]) -> FitCLI:
    """Trains a recipe, shortened, and checks what every recipe promises."""
    cli = open_recipe(name, *short(recipe, data, path), *network)
    notes = Phases(cli.prunings[0])
    cli.trainer.callbacks.insert(0, notes)  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert notes.seen == lasting(recipe)
    assert cli.prunings[0].stage == "pruned"
    assert all(torch.isfinite(p).all() for p in cli.model.parameters())
    given = recipe.prune.init_args
    targets = {k.removeprefix("target_"): v for k, v in given.items() if k.startswith("target_") and v is not None}
    if isinstance(cli.prunings[0], WeightPruning):
        sparsity = sparsity_report(cli.model).sparsity
        if "compression" in targets:
            targets["sparsity"] = 1 - 1 / targets["compression"]
        assert sparsity == pytest.approx(targets["sparsity"], abs=1e-3) if targets else sparsity > 0
    else:
        for resource, target in targets.items():
            assert target - 0.1 < cli.prunings[0].numbers[resource] < target + 0.01  # type: ignore[attr-defined]
    return cli


def test_what_a_recipe_says_fits_together(recipes: dict[str, Any]) -> None:
    for name, recipe in recipes.items():
        written = yaml.safe_load(recipe_path(name).read_text())
        assert recipe.prune.class_path == written["prune"]["class_path"], name
        parsed = json.loads(json.dumps(recipe.prune.init_args.as_dict(), default=str))  # pairs are lists in YAML
        assert {key: parsed[key] for key in written["prune"]["init_args"]} == written["prune"]["init_args"], name
        counted = [recipe.prune.init_args[phase] for phase in ("warmup", "sparsify", "finetune")]
        assert any(not isinstance(n, int) for n in counted) or sum(counted) == recipe.trainer.max_epochs, name
        late = [epoch for epoch in recipe.model.lr_steps or {} if epoch >= recipe.trainer.max_epochs]
        assert not late, f"{name}: rates from epochs {late} on are never reached"


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_runs_through_its_phases(name: str, recipes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    cli = run(name, recipes[name], data, tmp_path, network_of(recipes[name]))
    if name == "l1_vgg16_cifar10":  # half of the first and of the last six convolutions, to the filter
        convs = [m.out_channels for m in cli.model.modules() if isinstance(m, nn.Conv2d)]
        assert convs == [4, 8, 16, 16, 32, 32, 32] + 6 * [32]


def test_what_suits_gpus_works_on_a_cpu_too(recipes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    recipe = recipes["mrts_resnet50_imagenet"]
    assert (recipe.trainer.precision, recipe.model.channels_last) == ("bf16-mixed", True)
    flags = [f"--trainer.precision={recipe.trainer.precision}", "--data.num_workers=1"]
    cli = run("mrts_resnet50_imagenet", recipe, data, tmp_path, [*network_of(recipe), *flags])
    kernels = [p for p in cli.model.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


@pytest.mark.sweep
@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_runs_with_its_whole_network(name: str, recipes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    # Where the last maps are of one pixel, two images leave BatchNorm two values, and deep gradients explode.
    larger = ["--data.image_size=96"] if "ImageFolder" in recipes[name].data.class_path else []
    run(name, recipes[name], data, tmp_path, larger)
