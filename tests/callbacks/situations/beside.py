"""Callbacks beside ours, before it and after it: averages, checkpoints, stops, finders, a second one that prunes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from lightning_prune import DistillationCallback, LTPCallback
from tests.callbacks.situations import modules
from tests.callbacks.situations.cell import Cell, Situation
from tests.callbacks.test_kept_averages import Ema
from tests.callbacks.test_who_trains import Transfer, unfreezing
from tests.toy import Toy, samples


class OutsideEma(lightning.Callback):
    """timm's average of the network, kept by a callback of the user's."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.ema = ModelEmaV3(pl_module.net, decay=0.8)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.ema.update(pl_module.net)


AVERAGES: dict[str, Callable[[], lightning.Callback]] = {
    "WeightAveraging": WeightAveraging,
    "EMAWeightAveraging": lambda: EMAWeightAveraging(decay=0.8),
    "StochasticWeightAveraging": lambda: StochasticWeightAveraging(0.01, 2),
    "ModelEmaV3 in a callback": OutsideEma,
}


def averaging(make: Callable[[], lightning.Callback], last: bool) -> Situation:
    # SWA averages as an epoch begins: of a network that starts anew at the removal it has to see a second one.
    return Situation(trainer=lambda: {"max_epochs": 5}, beside=lambda _: [make()], ours_last=last)


class Sized(Toy):
    """Makes its loader for the batch size that is found."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 2

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(samples(32), self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(samples(32, seed=1), 16)


class Second(LTPCallback):
    """Another callback that zeroes weights."""


def stopping(folder: Path) -> list[lightning.Callback]:
    return [EarlyStopping("score", mode="max", patience=2)]


def tuned(cell: Cell) -> None:
    """The learning rate is searched before the fit, by a Tuner on the same Trainer."""
    trainer = cell.trainer()
    lightning.pytorch.tuner.Tuner(trainer).lr_find(cell.module, **cell.situation.data(), num_training=4)
    trainer.fit(cell.module, **cell.situation.data())


def checkpointing(**options: Any) -> Situation:
    return Situation(
        beside=lambda folder: [ModelCheckpoint(dirpath=folder / "kept", **options)],
        trainer=lambda: {"enable_checkpointing": True},
    )


SITUATIONS: dict[str, Situation] = {
    **{f"{name}, after ours": averaging(make, False) for name, make in AVERAGES.items()},
    **{f"{name}, before ours": averaging(make, True) for name, make in AVERAGES.items()},
    "ModelEmaV3 in the module": Situation(lambda: Ema(True)),
    "ModelEmaV3 in a list": Situation(lambda: Ema(False)),
    "checkpoints by metric": checkpointing(monitor="val_loss", save_top_k=2),
    "checkpoints by steps": checkpointing(every_n_train_steps=3, save_top_k=-1),
    "checkpoints by time": checkpointing(train_time_interval=timedelta(milliseconds=1), save_top_k=-1),
    "EarlyStopping": Situation(
        modules.Scored, beside=stopping, trainer=lambda: {"max_epochs": 6}, options={"all": {"sparsify": 1}}
    ),
    "LearningRateFinder": Situation(beside=lambda _: [LearningRateFinder(num_training_steps=4)]),
    "LearningRateFinder, before ours": Situation(
        beside=lambda _: [LearningRateFinder(num_training_steps=4)], ours_last=True
    ),
    "Tuner.lr_find": Situation(drive=tuned),
    "BatchSizeFinder": Situation(
        Sized, beside=lambda _: [BatchSizeFinder(max_trials=2, steps_per_trial=1)], data=dict, slow=True
    ),
    "BackboneFinetuning": Situation(Transfer, beside=lambda _: [unfreezing(1)], network="backbone"),
    "distillation": Situation(beside=lambda folder: [DistillationCallback(alpha=0.5, teacher_dir=str(folder))]),
    "a second one that prunes weights": Situation(
        beside=lambda _: [Second(target_sparsity=0.5, warmup=1, sparsify=1)],
        refused={
            "channels": r"would begin after batch 4, but channels are removed after batch 12",
            "all": r"cannot prune in the same fit",
        },
    ),
}
