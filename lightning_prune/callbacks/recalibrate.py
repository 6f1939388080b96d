"""Re-estimating BatchNorm statistics after the masks have moved, on a few training batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from lightning_prune.support.batchnorm import fresh_statistics
from lightning_prune.support.modes import mode

Forward = Callable[[LightningModule, Any], "tuple[Any, Tensor | None]"]


def calibration_batches(trainer: Trainer, limit: int) -> list[Any]:
    """Up to ``limit`` batches of a fresh pass over the training data, on the device.

    The fit's own iterator, its worker processes and the global random state are left as they are.
    """
    loader = trainer.train_dataloader
    if limit <= 0:
        return []
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        loader.__dict__["_iterator"] = None  # persistent workers belong to the fit's own iterator
    elif loader is None or iter(loader) is loader:
        return []
    batches = []
    with isolate_rng():
        for batch in loader:
            batch = trainer.precision_plugin.convert_input(batch)
            module = trainer.lightning_module
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            batches.append(trainer.strategy.batch_to_device(batch, dataloader_idx=0))
            if len(batches) == limit:
                break
    return batches


def forward_first_element(module: LightningModule, batch: Any) -> tuple[Any, Tensor | None]:
    """Run ``module`` on a batch's input: the batch itself, or its first element. Returns (output, labels or None)."""
    if isinstance(batch, (tuple, list)):
        labels = batch[1] if len(batch) > 1 and torch.is_tensor(batch[1]) else None
        return module(batch[0]), labels
    return module(batch), None


@torch.no_grad()
def network_input(
    trainer: Trainer, module: LightningModule, network: nn.Module, batch: Any, forward: Forward
) -> tuple[Any, ...] | dict[str, Any]:
    """What the network gets of a batch: positional or keyword arguments, at most two samples of each tensor.

    Raises:
        RuntimeError: the module cannot be called on the batch, or does not call the network.
    """
    found: list[tuple[Any, ...] | dict[str, Any]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args and kwargs:
            raise RuntimeError("the network gets positional and keyword arguments; only one kind can be traced")
        found.append(kwargs or args)

    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    failure: Exception | None = None
    try:
        with mode(module, False), trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
            if network is module:
                network(batch[0] if isinstance(batch, (tuple, list)) else batch)
            else:
                forward(module, batch)
    except Exception as error:
        failure = error
    finally:
        handle.remove()
    if not found:
        reason = f"{type(failure).__name__}: {failure}" if failure else "the network was not called"
        raise RuntimeError(
            f"{type(network).__name__} cannot be traced: the module could not be run on a training batch ({reason}). "
            "Override `calibration_forward` of the callback, or name the network with network=."
        ) from failure

    def first(value: Any) -> Any:
        return value[:2].detach().clone() if isinstance(value, Tensor) and value.ndim else value

    return pytree.tree_map(first, found[0])  # type: ignore[no-any-return]


def accuracy(trainer: Trainer, module: LightningModule, batches: list[Any], forward: Forward) -> float | None:
    """Share of right top-1 predictions in eval mode, or None where outputs are not logits [N, C] of labels [N]."""
    right = total = 0
    with mode(module, False), torch.no_grad(), trainer.precision_plugin.forward_context():
        for batch in batches:
            output, labels = forward(module, batch)
            if not torch.is_tensor(output) or output.ndim != 2 or labels is None or labels.ndim != 1:
                return None
            right += int((output.argmax(1) == labels).sum())
            total += len(labels)
    return right / total if total else None


def recalibrate(trainer: Trainer, module: LightningModule, batches: list[Any], forward: Forward) -> int:
    """Replace the running statistics of all training BatchNorms by plain averages over ``batches``.

    Only the BatchNorms are in train mode meanwhile, so dropout and stochastic depth do not add noise. In distributed
    training the ranks' statistics are averaged.

    Returns:
        Number of BatchNorm layers re-estimated.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    if not norms or not batches:
        return 0
    with mode(module, False), torch.no_grad(), trainer.precision_plugin.forward_context(), fresh_statistics(norms):
        for batch in batches:
            forward(module, batch)
    for norm in norms:
        if trainer.world_size > 1:
            for name in ("running_mean", "running_var"):
                buffer = getattr(norm, name)
                buffer.copy_(trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))
    return len(norms)
