"""Refusing what would prune wrongly without an error: unsupported strategies, optimizers that bypass the hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def check_strategy(trainer: Trainer, callback: str) -> None:
    """Raise for strategies that shard parameters: a layer's weight is never whole there."""
    if getattr(trainer.strategy, "restore_checkpoint_after_setup", False):
        raise NotImplementedError(
            f"{callback} does not support {type(trainer.strategy).__name__}: it shards or restores weights after the "
            "masks are set. Use strategy='ddp' or a single device."
        )


def check_launcher(trainer: Trainer, callback: str) -> None:
    """Raise for strategies that train in child processes of this one: only weights come back, into the dense module."""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise NotImplementedError(
            f"{callback} does not support a strategy that trains in processes of its own (ddp_spawn, ddp_fork, "
            "ddp_notebook): the smaller model could not come back from them. Use strategy='ddp', from a script or by "
            "torchrun."
        )


def check_alone(trainer: Trainer, callback: Callback) -> None:
    """Raise if another callback of this package prunes in the same fit: the shapes it knows would change under it."""
    others: list[Callback] = getattr(trainer, "callbacks", [])
    for other in others:
        if other is not callback and hasattr(other, "stage") and hasattr(other, "calibration_forward"):
            raise ValueError(
                f"{type(callback).__name__} and {type(other).__name__} cannot prune in the same fit: the first changes "
                "the shapes of the weights that the other masks. Fit twice: remove channels first, then zero weights."
            )


class OptimizerGuard:
    """Watches that each step of an optimizer that holds masked weights went through ``on_before_optimizer_step``."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step
        self._handles: list[RemovableHandle] = []
        self._transformed: set[int] = set()

    def watch(self, optimizers: Iterable[Optimizer], params: Iterable[nn.Parameter]) -> None:
        """Start watching; `release` stops it.

        Raises:
            NotImplementedError: an optimizer evaluates its closure several times a step (LBFGS).
        """
        self.release()
        masked = {id(p) for p in params}
        for optimizer in optimizers:
            if not any(id(p) in masked for group in optimizer.param_groups for p in group["params"]):
                continue
            if isinstance(optimizer, torch.optim.LBFGS):
                raise NotImplementedError(
                    "LBFGS evaluates the loss several times a step, and thresholds would move in between. "
                    "Use a first-order optimizer (SGD, AdamW, ...)."
                )
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def new_batch(self) -> None:
        """Forget the last batch's steps. Not after each step: one that calls its base class's ends twice."""
        self._transformed.clear()

    def transformed(self, optimizer: Optimizer) -> None:
        """Note that this optimizer's steps in this batch go through the hooks."""
        self._transformed.add(id(optimizer))

    def release(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._transformed.clear()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._on_step()
        if id(optimizer) not in self._transformed:
            raise RuntimeError(
                f"{type(optimizer).__name__}.step() ran without Lightning's hooks, so thresholds cannot move and "
                "pruned weights would come back. In manual optimization step the optimizer that self.optimizers() "
                "gives (not use_pl_optimizer=False, not one kept from configure_optimizers)."
            )
