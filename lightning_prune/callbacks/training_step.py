"""A method's own training step: put on where its phase asks for it, and what goes in and out of it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_prune.callbacks.method import PruningMethod
from lightning_prune.support.swap.training_step import unwrap_training_step, wrap_training_step


def hold_step(method: PruningMethod, module: LightningModule) -> None:
    """Put a method's own training step on the module where the phase asks for it, and off where it does not."""
    if method.owns_steps and (method.stage == "soft" or (method.stage == "pruned" and method.trains_to_the_end)):
        wrap_training_step(module, method.around_step)
    else:
        unwrap_training_step(module, method.around_step)


def check_automatic(module: LightningModule) -> None:
    """Raise NotImplementedError for manual optimization: the loss that the step returns is not used there."""
    if not module.automatic_optimization:
        raise NotImplementedError(
            f"{type(module).__name__} optimizes by hand (automatic_optimization=False), and this method changes the "
            "loss that training_step returns, which nobody would read. Return the loss and leave the optimizer to "
            "Lightning."
        )


def check_takes_batches(module: LightningModule) -> None:
    """Raise NotImplementedError for a step that takes the iterator over the data: a method has batches of its own."""
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise NotImplementedError(
            f"training_step of {type(module).__name__} takes dataloader_iter, and this method has to see the batch "
            "that it works on. Let it take (batch, batch_idx)."
        )


def loss_of(output: Any) -> Tensor | None:
    """The loss in what ``training_step`` returned: itself, the entry of a dict, or None where the step is skipped."""
    loss: Tensor | None = output["loss"] if isinstance(output, dict) else output
    return loss


def with_loss(output: Any, loss: Tensor) -> Any:
    """What ``training_step`` returned, with another loss."""
    return {**output, "loss": loss} if isinstance(output, dict) else loss


def inputs_of(batch: Any) -> tuple[Tensor, list[Any]]:
    """The inputs of a batch, and the rest of it.

    Raises:
        ValueError: they are not its first element, or are no numbers to change a little.
    """
    if isinstance(batch, (list, tuple)) and batch and torch.is_tensor(batch[0]) and batch[0].is_floating_point():
        return batch[0], list(batch[1:])
    raise ValueError(
        "an attack moves the first element of a batch, a floating-point tensor [N, ...], and found "
        f"{type(batch).__name__}. Let the loader give (inputs, labels)."
    )
