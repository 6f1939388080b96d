"""Modules, Trainers and callbacks of ``pytorch_lightning``, the package that ``lightning`` brings along."""

from __future__ import annotations

import pytorch_lightning
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from tests.callbacks.situations.cell import Situation
from tests.toy import Toy, network


class Standalone(pytorch_lightning.LightningModule):
    """`Toy` as a module of that package."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.kind, self.lr = network(), "sgd", 0.05

    forward, training_step, validation_step = Toy.forward, Toy.training_step, Toy.validation_step
    configure_optimizers = Toy.configure_optimizers


SITUATIONS: dict[str, Situation] = {
    "standalone pytorch_lightning": Situation(
        Standalone,
        trainer=lambda: {"make": pytorch_lightning.Trainer, "enable_checkpointing": True},
        beside=lambda folder: [ModelCheckpoint(folder, monitor="val_loss"), EarlyStopping("val_loss", patience=9)],
    ),
}
