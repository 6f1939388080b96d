"""A small language model of characters in a LightningModule of its own, on Python's help topics, in windows of 65."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune.zoo.characters import CharacterTransformer
from lightning_prune.zoo.data.characters import help_topics

WINDOW = 64
ALPHABET = [chr(c) for c in (10, *range(32, 127))]


def loaders(characters: int, seed: int, batch_size: int = 16) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Windows of the first characters to train on, and a ninth as many of those after them to test on."""
    number = {c: i for i, c in enumerate(ALPHABET)}
    numbers = torch.tensor([number[c] for c in help_topics()])
    if len(numbers) < characters + characters // 9:
        raise ValueError(f"characters={characters}: the text has {len(numbers)}, of which a tenth is to test on.")
    train, test = numbers[:characters], numbers[characters : characters + characters // 9]

    def windows(part: Tensor) -> TensorDataset:
        return TensorDataset(part[: len(part) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1))

    order = torch.Generator().manual_seed(seed)
    return (
        DataLoader(windows(train), batch_size, shuffle=True, drop_last=True, generator=order),
        DataLoader(windows(test), 256),
    )


class Characters(lightning.LightningModule):
    """A Transformer that predicts the next character; tested in bits per character."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4, lr: float = 3e-3) -> None:
        super().__init__()
        self.lr = lr
        self.net = CharacterTransformer(len(ALPHABET), 1, width, depth, heads, WINDOW)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).transpose(1, 2)

    def _loss(self, batch: list[Tensor]) -> Tensor:
        windows = batch[0]
        return F.cross_entropy(self(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self._loss(batch)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("bits", self._loss(batch) / math.log(2), batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
