"""Running the model on a few training batches: fresh BatchNorm statistics, accuracy, observed activations.

One policy on errors: what the network raises becomes a `CalibrationError` with the network's own exception as its
cause; running out of memory, and a fault of this package, are raised as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from lightning_prune.callbacks.trainer import batch_on_device, fresh_pass
from lightning_prune.errors import CalibrationError
from lightning_prune.support.batchnorm import fresh_statistics
from lightning_prune.support.faults import is_networks
from lightning_prune.support.modes import Arguments, mode
from lightning_prune.support.watch import Side, watching

Forward = Callable[[LightningModule, Any], "tuple[Any, Tensor | None]"]
Loss = Callable[[Any, "Tensor | None"], Tensor]
Note = Callable[[str, Tensor, "Tensor | None"], None]


def calibration_batches(trainer: Trainer, limit: int) -> list[Any]:
    """Up to ``limit`` batches of a fresh pass over the training data, on the device.

    The fit's own iterator, its worker processes and the global random state are left as they are.
    """
    if limit <= 0:
        return []
    with isolate_rng():
        return [batch_on_device(trainer, batch) for batch in islice(fresh_pass(trainer), limit)]


def batch_at_hand(trainer: Trainer, batch: Any) -> Any:
    """The batch that a hook is given; where it is given none, as ``training_step`` takes the iterator, a fresh one."""
    return batch if batch is not None else next(iter(calibration_batches(trainer, 1)), None)


def forward_first_element(module: LightningModule, batch: Any) -> tuple[Any, Tensor | None]:
    """Run ``module`` on a batch's input: the batch itself, or its first element. Returns (output, labels or None)."""
    if isinstance(batch, (tuple, list)):
        labels = batch[1] if len(batch) > 1 and torch.is_tensor(batch[1]) else None
        return module(batch[0]), labels
    return module(batch), None


def run(trainer: Trainer, module: LightningModule, batch: Any, forward: Forward) -> tuple[Any, Tensor | None]:
    """One forward pass under the trainer's precision.

    Raises:
        CalibrationError: the network raised; that exception is the cause.
    """
    try:
        with trainer.precision_plugin.forward_context():
            return forward(module, batch)
    except Exception as error:
        if not is_networks(error):
            raise
        told = f"{type(error).__name__}: {error}"
        if not getattr(forward, "guesses", False):
            raise CalibrationError(
                f"`calibration_forward` of the callback failed on a training batch ({told}). Mend it"
            ) from error
        raise CalibrationError(
            f"{type(module).__name__} could not be called on a training batch ({told}). Override "
            "`calibration_forward` of the callback"
        ) from error


@torch.no_grad()
def network_input(
    trainer: Trainer, module: LightningModule, network: nn.Module, batch: Any, forward: Forward
) -> Arguments:
    """What the network gets of a batch, at most two samples of each tensor.

    Raises:
        CalibrationError: the module cannot be called on the batch, or does not call the network.
    """
    found: list[Arguments] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found.append(Arguments(args, kwargs))

    handle = network.register_forward_hook(note, with_kwargs=True)  # not called where the network itself raises
    failure: Exception | None = None
    try:
        with mode(module, False), torch.compiler.set_stance("force_eager"):
            run(trainer, module, batch, forward)
    except CalibrationError as error:
        failure = error
    finally:
        handle.remove()
    if not found:
        reason = str(failure) if failure else "the network was not called. Override `calibration_forward`"
        raise CalibrationError(
            f"{type(network).__name__} cannot be traced: {reason}, or name the network with network=."
        ) from failure

    def first(value: Any) -> Any:
        return value[:2].detach().clone() if isinstance(value, Tensor) and value.ndim else value

    return pytree.tree_map(first, found[0])  # type: ignore[no-any-return]


@torch.no_grad()
def rehearse(
    trainer: Trainer, module: LightningModule, batches: Iterable[Any], forward: Forward, loss: Loss | None = None
) -> None:
    """Run on some batches as calibration will, and take the loss of a method that has one.

    Raises:
        CalibrationError: as `run`.
        ValueError: the loss does not know the output, or has no labels.
    """
    with mode(module, False), torch.compiler.set_stance("force_eager"):
        for batch in batches:
            output, labels = run(trainer, module, batch, forward)
            if loss is not None:
                loss(output, labels)


@torch.no_grad()
def accuracy(trainer: Trainer, module: LightningModule, batches: Iterable[Any], forward: Forward) -> float | None:
    """Share of right top-1 predictions in eval mode, or None where outputs are not logits [N, C] of labels [N]."""
    right = total = 0
    with mode(module, False):
        for batch in batches:
            output, labels = run(trainer, module, batch, forward)
            if not torch.is_tensor(output) or output.ndim != 2 or labels is None or labels.ndim != 1:
                return None
            right += int((output.argmax(1) == labels).sum())
            total += len(labels)
    return right / total if total else None


@torch.no_grad()
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
    with mode(module, False), fresh_statistics(norms):
        for batch in batches:
            run(trainer, module, batch, forward)
    for norm in norms:
        if trainer.world_size > 1:
            for name in ("running_mean", "running_var"):
                buffer = getattr(norm, name)
                buffer.copy_(trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))
    return len(norms)


@torch.no_grad()
def observe(
    trainer: Trainer,
    module: LightningModule,
    sites: Mapping[str, nn.Module],
    side: Side,
    note: Note,
    batches: Iterable[Any],
    forward: Forward,
) -> None:
    """Shows a method what flows through some modules in eval mode: ``note(name, activation, labels)``, once a call.

    Args:
        trainer, module: run in eval mode.
        sites: the modules, by name.
        side: which side of them.
        note: takes an activation [N, ...] and the batch's labels [N], or None.
        batches: to run on.
        forward: how, see `forward_first_element`.
    """
    seen: list[tuple[str, Tensor]] = []
    places = {name: (site, side) for name, site in sites.items()}
    with (
        watching(places, lambda name, x: seen.append((name, x))),
        mode(module, False),
        torch.compiler.set_stance("force_eager"),
    ):
        for batch in batches:
            _, labels = run(trainer, module, batch, forward)
            while seen:
                name, activation = seen.pop(0)
                note(name, activation, labels)
