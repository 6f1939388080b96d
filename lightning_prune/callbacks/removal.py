"""Removing channels from a model that a Trainer is training: everything that holds on to the old shapes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def shapes_may_change(trainer: Trainer) -> Iterator[None]:
    """Takes DistributedDataParallel off and wraps the module anew after: its reducer keeps the shapes it has seen."""
    strategy: Any = trainer.strategy
    wrapped = isinstance(strategy.model, DistributedDataParallel)
    if wrapped:
        strategy.model = trainer.lightning_module
        gc.collect()  # the old reducer's hooks go with it
    try:
        yield
    finally:
        if wrapped:
            strategy.configure_ddp()


def averaged_copies(trainer: Trainer) -> list[nn.Module]:
    """The copies of the model that averaging callbacks keep (WeightAveraging, StochasticWeightAveraging)."""
    copies = [getattr(callback, "_average_model", None) for callback in getattr(trainer, "callbacks", ())]
    return [copy for copy in copies if isinstance(copy, nn.Module)]


def begin_anew(trainer: Trainer) -> None:
    """Tells checkpoint and early-stopping callbacks that earlier scores were those of another model.

    Without it ``best`` may be a checkpoint of the dense model. Files that were saved stay where they are.
    """
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, ModelCheckpoint):
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = callback.current_score = None
            callback.kth_value = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
        elif isinstance(callback, EarlyStopping):
            worst = torch.tensor(torch.inf)
            callback.best_score = worst if callback.monitor_op is torch.lt else -worst
            callback.wait_count = 0


def reinitialise(network: nn.Module, trainer: Trainer, seed: int) -> None:
    """Gives every layer fresh weights and forgets the optimizers' state: to train the compact model from scratch.

    Layers draw by their own ``reset_parameters``, from a generator of the given seed; the global one is left alone.
    """
    mine = set(network.parameters())
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None)
            own = [p.numel() for p in module.parameters(recurse=False)]
            if callable(reset) and own and all(own):  # of a branch that went whole there is nothing to draw
                reset()
    for optimizer in trainer.optimizers:
        for param in [p for p in optimizer.state if p in mine]:
            del optimizer.state[param]
