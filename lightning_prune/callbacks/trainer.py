"""What Lightning does not offer as public API: each of its private attributes that we read stands in this file."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from lightning_prune.support.network import is_a


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The trainer's callbacks, in their order."""
    return list(getattr(trainer, "callbacks", ()))


def beside(trainer: Trainer, callback: Callback) -> dict[str, Callback]:
    """The other callbacks, by an address."""
    return {f"callbacks[{i}]": other for i, other in enumerate(callbacks_of(trainer)) if other is not callback}


def thaws_later(trainer: Trainer) -> bool:
    """Whether a callback lets layers train that do not when the fit begins (BackboneFinetuning)."""
    return any(is_a(callback, BaseFinetuning) for callback in callbacks_of(trainer))


def shards_parameters(trainer: Trainer) -> bool:
    """Whether the strategy shards weights or restores them after ``on_fit_start`` (FSDP, DeepSpeed, ...)."""
    return bool(getattr(trainer.strategy, "restore_checkpoint_after_setup", False))


def splits_rows(trainer: Trainer) -> bool:
    """Whether the strategy leaves it to the module to shard its weights, by ``fully_shard`` (FSDP2)."""
    return is_a(trainer.strategy, ModelParallelStrategy)


def trains_in_child_processes(trainer: Trainer) -> bool:
    """Whether the training runs in child processes of this one, from which only weights come back."""
    return is_a(trainer.strategy.launcher, _MultiProcessingLauncher)


def writes_logs_now(trainer: Trainer) -> bool:
    """Whether the logger writes this step."""
    return bool(trainer._logger_connector.should_update_logs)


def log_to_loggers(trainer: Trainer, numbers: Mapping[str, float]) -> None:
    """Numbers for the loggers alone, never for ``callback_metrics``."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(numbers), step=_logged_step(trainer))


def log_histograms(trainer: Trainer, values: Mapping[str, Tensor]) -> None:
    """Histograms of what is finite, by name, for loggers that take them."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        add: Any = getattr(logger.experiment, "add_histogram", None) if hasattr(logger, "experiment") else None
        for name, value in values.items() if add is not None else ():
            if len(finite := value.detach()[value.isfinite()]):
                add(name, finite.float(), _logged_step(trainer))


def log_figures(trainer: Trainer, figures: Mapping[str, Any], folder: Path) -> None:
    """Figures by name, for loggers that take them and as PNG files in a folder; to be called on the first rank."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        for logger in trainer.loggers:
            add: Any = getattr(logger.experiment, "add_figure", None) if hasattr(logger, "experiment") else None
            if add is not None:
                add(f"prune/{name}", figure, _logged_step(trainer), close=False)


def _logged_step(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def count_epoch(trainer: Trainer) -> None:
    """Counts the running epoch as begun where Lightning does not; called before each batch.

    Lightning 2.6 leaves it out after a resume from a checkpoint of an epoch's last batch, and in all epochs after. Its
    next checkpoints then say that no epoch is running, and a run that is resumed from one begins the epoch anew.
    """
    progress: Any = trainer.fit_loop.epoch_progress
    for count in (progress.current, progress.total):
        if count.ready == count.processed:
            count.ready += 1
            count.started += 1


def fresh_pass(trainer: Trainer) -> Iterable[Any]:
    """Batches as ``training_step`` gets them, of one loader or several, from the start; none of a one-pass iterator.

    The fit's own iterators, and the worker processes that persist for them, are left alone.
    """
    running = trainer.fit_loop._combined_loader
    if running is None or any(iter(loader) is loader for loader in running.flattened if not _is_loader(loader)):
        return ()
    fresh = CombinedLoader(running.iterables, running._mode)
    fresh.flattened = [_unstarted(loader) for loader in running.flattened]
    return (batch for batch, _, _ in fresh)


def _is_loader(loader: Any) -> bool:
    return isinstance(loader, DataLoader)


def _unstarted(loader: Any) -> Any:
    if _is_loader(loader):
        loader = copy.copy(loader)
        loader.__dict__["_iterator"] = None
    return loader


def batch_on_device(trainer: Trainer, batch: Any) -> Any:
    """A batch as ``training_step`` would get it."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def averaged_copies(trainer: Trainer) -> list[nn.Module]:
    """The copies of the model that averaging callbacks keep (WeightAveraging, StochasticWeightAveraging)."""
    copies = [getattr(callback, "_average_model", None) for callback in callbacks_of(trainer)]
    return [copy for copy in copies if isinstance(copy, nn.Module)]


def loss_scale(trainer: Trainer) -> float:
    """What gradients outside the optimizers' parameters are still multiplied by: the loss scale of 16-bit training."""
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


@contextmanager
def shapes_may_change(trainer: Trainer) -> Iterator[None]:
    """Takes DistributedDataParallel off and wraps the module anew after: its reducer keeps the shapes it has seen."""
    strategy: Any = trainer.strategy
    wrapped = isinstance(strategy.model, DistributedDataParallel)
    if wrapped:
        strategy.model = trainer.lightning_module
    gc.collect()  # the old reducer's hooks go with it, and graphs in cycles, in which autograd remembers the shapes too
    try:
        yield
    finally:
        if wrapped:
            strategy.configure_ddp()


def announce_removal(trainer: Trainer, module: LightningModule, plan: Any) -> None:
    """Tells every callback that the model has other shapes now: ``on_channels_removed(trainer, module, plan)``.

    Lightning's own have no such method: to checkpoint and early-stopping callbacks, earlier scores are those of another
    model from here on, or ``best`` may be the dense one. Files that were saved stay where they are.
    """
    for callback in callbacks_of(trainer):
        listener = getattr(callback, "on_channels_removed", None)
        if callable(listener):
            listener(trainer, module, plan)
        elif is_a(callback, ModelCheckpoint):
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = callback.current_score = None
            callback.kth_value = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
        elif is_a(callback, EarlyStopping):
            worst = torch.tensor(torch.inf)
            callback.best_score = worst if callback.monitor_op is torch.lt else -worst
            callback.wait_count = 0
