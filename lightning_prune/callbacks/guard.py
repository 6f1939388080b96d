"""Refusing what would prune wrongly without an error: strategies, a second callback, optimizers off the hooks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from lightning_prune.callbacks.trainer import shards_parameters, splits_rows, trains_in_child_processes
from lightning_prune.errors import DivergenceError, PhaseError
from lightning_prune.masks.shards import local


def check_strategy(trainer: Trainer, callback: str, in_shards: bool = False) -> None:
    """Raise for strategies that shard parameters: a layer's weight is never whole there.

    Args:
        trainer: of the fit.
        callback: its name.
        in_shards: whether it works on rows of weights, as `fully_shard` splits them under ModelParallelStrategy.
    """
    if shards_parameters(trainer) and not (in_shards and splits_rows(trainer)):
        raise NotImplementedError(
            f"{callback} does not support {type(trainer.strategy).__name__}, which shards weights over processes. Use "
            "strategy='ddp' or a single device. On sharded weights LTPCallback and MagnitudeCallback work, with "
            "ModelParallelStrategy; remove channels before: with `prune_channels`, or in a fit of its own."
        )


def check_launcher(trainer: Trainer, callback: str) -> None:
    """Raise for strategies that train in child processes of this one: only weights come back, into the dense module."""
    if trains_in_child_processes(trainer):
        raise NotImplementedError(
            f"{callback} does not support a strategy that trains in processes of its own (ddp_spawn, ddp_fork, "
            "ddp_notebook): the smaller model could not come back from them. Use strategy='ddp', from a script or by "
            "torchrun."
        )


def has_norms(network: nn.Module) -> bool:
    """Whether a network has a BatchNorm with scale factors."""
    return any(isinstance(m, _BatchNorm) and m.affine for m in network.modules())


def check_norms(network: nn.Module, callback: str, way_out: str = "") -> None:
    """Raise if a network has no BatchNorm with scale factors, which some methods decide by; ``way_out``: what helps."""
    if not has_norms(network):
        raise ValueError(
            f"{callback} decides by BatchNorm scale factors, and {type(network).__name__} has none "
            f"(it uses LayerNorm, GroupNorm or no norm). {way_out}Use a method that scores weights, such as "
            "FPGMCallback, LTPCallback, which prunes weights of any model, or a backbone with BatchNorm."
        )


def check_diverged(
    parameters: Iterable[tuple[str, nn.Parameter]],
    callback: str,
    batches: int,
    failure: Exception | None = None,
    trainer: Trainer | None = None,
) -> None:
    """Raise DivergenceError if parameters that units are scored by are NaN or infinite.

    Args:
        parameters: by name.
        callback: its name.
        batches: seen so far.
        failure: what scoring raised.
        trainer: what any of its ranks has lost, all are told of, so that none waits for another; None: this rank asks.
    """
    named = dict(parameters)
    flags = torch.tensor([not bool(local(p).isfinite().all()) for p in named.values()])
    if trainer is not None and trainer.world_size > 1:
        counts = trainer.strategy.reduce(flags.float().to(trainer.strategy.root_device), reduce_op="sum")
        flags = counts > 0  # type: ignore[operator]
    lost = [name for name, flag in zip(named, flags.tolist(), strict=True) if flag]
    if lost:
        raise DivergenceError(
            f"The training has diverged: after {batches} batches {len(lost)} parameters are NaN or infinite "
            f"({', '.join(lost[:3])}, ...), so {callback} cannot tell what to keep. Lower the learning rate, clip "
            "gradients, or look for the batch whose loss is NaN."
        ) from failure


class Lockstep:
    """Sees that the ranks of a training stay at the same batch: else they would wait for each other for ever.

    Data without a length is asked after each batch, as nobody knows beforehand where it ends.
    """

    def __init__(self) -> None:
        self._watches = False

    def begin(self, trainer: Trainer) -> None:
        """Called at the start of a training.

        Raises:
            PhaseError: on all ranks, if one has more training batches an epoch than another.
        """
        self._watches = False
        if trainer.world_size == 1:
            return
        lengths = _on_all_ranks(trainer, trainer.num_training_batches)
        if len(set(lengths)) > 1:
            raise PhaseError(
                f"The ranks have {', '.join(f'{n:g}' for n in lengths)} training batches an epoch, and would wait for "
                "each other for ever. Give each the same number: Lightning's own sampler pads the parts "
                f"(use_distributed_sampler=True), and limit_train_batches={min(lengths):g} takes what every rank has."
            )
        self._watches = any(sized_len(loader) is None for loader in pytree.tree_leaves(trainer.train_dataloader))

    def check(self, trainer: Trainer) -> None:
        """Called after each batch, which all ranks have had.

        Raises:
            PhaseError: on all ranks, if the data of one ends here and that of another goes on.
        """
        last = _on_all_ranks(trainer, trainer.is_last_batch) if self._watches else []
        if len(set(last)) > 1:
            batches = trainer.fit_loop.epoch_loop.batch_idx + 1
            raise PhaseError(
                f"The data of ranks {[rank for rank, ends in enumerate(last) if ends]} ends after {batches} batches of "
                f"epoch {trainer.current_epoch}, and that of the others goes on: they would wait for each other for "
                f"ever. Let every rank give as many batches an epoch, such as with limit_train_batches={batches}."
            )


def _on_all_ranks(trainer: Trainer, number: float) -> list[float]:
    numbers = torch.zeros(trainer.world_size, dtype=torch.float64, device=trainer.strategy.root_device)
    numbers[trainer.global_rank] = number
    return trainer.strategy.reduce(numbers, reduce_op="sum").tolist()  # type: ignore[union-attr,no-any-return]


LastFit = tuple["weakref.ref[Trainer]", "weakref.ref[LightningModule]"]


def goes_on(last: LastFit | None, trainer: Trainer, module: LightningModule) -> bool:
    """Whether a fit goes on where the last one ended: that of the same Trainer and module, which count on."""
    same = last is not None and last[0]() is trainer and last[1]() is module
    return same and trainer.current_epoch > 0 and not trainer.ckpt_path


class OptimizerGuard:
    """Tells of each step that an optimizer really takes, and refuses steps that went around Lightning's hooks.

    Args:
        on_step: called after each step, with the optimizer: not on an overflow of the loss scale, for one.
    """

    def __init__(self, on_step: Callable[[Optimizer], None]) -> None:
        self._on_step = on_step
        self._handles: list[RemovableHandle] = []
        self._announced: set[int] = set()
        self._watched: set[int] = set()

    def watch(self, optimizers: Iterable[Optimizer], masked: Iterable[nn.Parameter]) -> None:
        """Start; `release` stops it. masked: parameters whose gradients must go through the hooks.

        Raises:
            NotImplementedError: an optimizer evaluates its closure several times a step (LBFGS).
        """
        self.release()
        wanted = {id(p) for p in masked}
        for optimizer in optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                raise NotImplementedError(
                    "LBFGS evaluates the loss several times a step, and thresholds would move in between; its history "
                    "is one vector of all weights, which cannot follow when channels go. Use a first-order optimizer "
                    "(SGD, AdamW, ...)."
                )
            if any(id(p) in wanted for group in optimizer.param_groups for p in group["params"]):
                self._watched.add(id(optimizer))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def new_batch(self) -> None:
        """Forget the last batch's steps. Not after each step: one that calls its base class's ends twice."""
        self._announced.clear()

    def announced(self, optimizer: Optimizer) -> None:
        """Note that this optimizer's steps in this batch go through the hooks."""
        self._announced.add(id(optimizer))

    def release(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._announced.clear()
        self._watched.clear()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._on_step(optimizer)
        if id(optimizer) in self._watched and id(optimizer) not in self._announced:
            raise RuntimeError(
                f"{type(optimizer).__name__}.step() ran without Lightning's hooks, so thresholds and gates cannot move "
                "and pruned weights would come back. In manual optimization step the optimizer that "
                "self.optimizers() gives (not use_pl_optimizer=False, not one kept from configure_optimizers)."
            )
