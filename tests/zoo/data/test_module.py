"""What all data modules share: subsets, batches, augmentation, arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_prune.zoo.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
)
from lightning_prune.zoo.data.module import ImageDataModule
from tests.zoo.data.files import labels_of


def test_subset_is_balanced_and_too_large_a_subset_is_refused() -> None:
    module = DigitsDataModule(subset=100)
    module.setup()
    assert labels_of(module.train_set).bincount().tolist() == [10] * 10
    with pytest.raises(ValueError, match="subset=5000 but DigitsDataModule has 1"):
        DigitsDataModule(subset=5000).setup()


def test_small_sets_still_give_a_batch_and_a_rest_of_one_is_dropped() -> None:
    small = DigitsDataModule(subset=10, batch_size=64)
    small.setup()
    assert [len(y) for _, y in small.train_dataloader()] == [10]
    odd = DigitsDataModule(subset=33, batch_size=16)
    odd.setup()
    assert [len(y) for _, y in odd.train_dataloader()] == [16, 16]


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"subset": 0}, {"image_size": 0}, {"val_split": 1.0}])
def test_impossible_arguments_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        DigitsDataModule(**bad)


def test_augmentation_touches_training_batches_only_and_replays() -> None:
    plain, augmented = DigitsDataModule(), DigitsDataModule(augment=True)
    for module in (plain, augmented):
        module.setup()
    first, second = (next(iter(m.train_dataloader())) for m in (plain, augmented))
    assert first[1].equal(second[1])
    assert not first[0].equal(second[0])
    assert second[0].equal(next(iter(augmented.train_dataloader()))[0])
    validation = [next(iter(m.val_dataloader()))[0] for m in (plain, augmented)]  # type: ignore[index]
    assert validation[0].equal(validation[1])


@pytest.mark.parametrize(
    "cls", [DigitsDataModule, FashionMNISTDataModule, CIFAR10DataModule, CIFAR100DataModule, ImageFolderDataModule]
)
def test_arguments_go_through_jsonargparse(cls: type[ImageDataModule]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "data")
    given = {"batch_size": 7, "num_workers": 1, "image_size": 24, "subset": 30, "val_split": 0.3, "seed": 4}
    arguments = [f"--data.{key}={value}" for key, value in given.items()] + ["--data.augment=true"]
    if cls is not DigitsDataModule:
        arguments.append("--data.root=x")
    module = parser.instantiate_classes(parser.parse_args(arguments)).data
    assert {key: getattr(module, key) for key in given} == given
    assert module.augment is True


def test_a_trainer_takes_the_digits(tmp_path: Path) -> None:
    class Count(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1024, 10)
            self.steps = {"train": 0, "val": 0, "test": 0}

        def _loss(self, batch: tuple[Tensor, Tensor], part: str) -> Tensor:
            self.steps[part] += 1
            return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return self._loss(batch, "train")

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return self._loss(batch, "val")

        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return self._loss(batch, "test")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    module = Count()
    trainer.fit(module, datamodule=DigitsDataModule(batch_size=100, subset=300))
    trainer.test(module, datamodule=DigitsDataModule(batch_size=100), verbose=False)
    assert module.steps == {"train": 3, "val": 3, "test": 4}
