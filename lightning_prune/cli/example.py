"""What the network is fed: one input of the data, so that tables can count FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class ExampleInput(Callback):
    """Gives the module an ``example_input_array`` of the data's shape, where it has none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called when the data are set up: Lightning's summary of the model then has a column of FLOPs."""
        if pl_module.example_input_array is None:
            pl_module.example_input_array = example_input(trainer.datamodule)  # type: ignore[attr-defined]


def example_input(data: Any) -> Tensor | None:
    """Zeros of the shape of one image, [1, C, H, W], or of one window of a text, int64 [1, T]; None without any."""
    for name in ("train_set", "val_set", "test_set"):
        samples = getattr(data, name, None)
        if samples is not None and len(samples):
            return torch.zeros_like(samples[0][0])[None]
    return None
