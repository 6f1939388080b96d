"""Distillation where the user's own step optimizes: the loss is asked for."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_prune.callbacks.distillation.callback import DistillationCallback
from lightning_prune.callbacks.trainer import callbacks_of


def distill(module: LightningModule, loss: Tensor) -> Tensor:
    """The loss with what the teachers of the fit's `DistillationCallback`s say, for manual optimization.

    Call it in ``training_step`` after the network and before the backward pass. Without such a callback the loss is
    returned as it is. In automatic optimization it need not be called, and may be.

    Args:
        module: the LightningModule.
        loss: the task's, a scalar.
    """
    for callback in callbacks_of(module.trainer):
        if isinstance(callback, DistillationCallback):
            loss = callback.loss(module, loss)
    return loss
