"""Fresh BatchNorm statistics after a change that was not exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_prune.errors import ChannelError
from lightning_prune.support.modes import mode, split_input


@contextmanager
def fresh_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Inside, the norms gather plain averages over what passes through them, from nothing; their momentum comes back.

    If the inside raises, they have the statistics they had; those that nothing passes through have them in any case (a
    teacher's, a branch that is not taken). To be used where the rest of the model is in eval mode.
    """
    momenta = [m.momentum for m in norms]
    before = [{k: v.clone() for k, v in m.named_buffers()} for m in norms]
    idle = {id(m) for m in norms}
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.training = True
        yield
        idle = {id(m) for m in norms if m.num_batches_tracked is not None and not int(m.num_batches_tracked)}
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            if id(norm) in idle:
                norm.load_state_dict(buffers, strict=False)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class QuickStatistics:
    """Running statistics that follow faster for a while: where layers shrink from step to step, averages are behind."""

    _LEAST = 0.5  # momentum: two steps in place of ten

    def __init__(self) -> None:
        self._before: list[tuple[_BatchNorm, float | None, dict[str, torch.Tensor]]] = []

    def begin(self, model: nn.Module) -> None:
        """Raise the momenta of the model's BatchNorms; twice is once."""
        self.end()
        for norm in model.modules():
            if isinstance(norm, _BatchNorm) and (norm.momentum is None or norm.momentum < self._LEAST):
                self._before.append((norm, norm.momentum, {k: v.clone() for k, v in norm.named_buffers()}))
                norm.momentum = self._LEAST

    def end(self, undo: bool = False) -> None:
        """Put the momenta back, with ``undo`` the statistics too: layers are again as large as they were."""
        for norm, momentum, buffers in self._before:
            norm.momentum = momentum
            for name, value in norm.named_buffers() if undo else ():
                value.copy_(buffers[name])
        self._before = []


def normalises_batches(model: nn.Module) -> bool:
    """Whether any of its modules is a BatchNorm that divides by what a batch varies: one in train mode."""
    return any(isinstance(m, _BatchNorm) and m.training for m in model.modules())


def recalibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Replaces the running statistics of every BatchNorm by their plain average over some batches.

    Useful after surgery with constants that could not be folded exactly, or with an accepted approximation. Weights
    do not change; every module's mode and momentum are as before afterwards.

    Args:
        batches: inputs as `ChannelGraph.trace` takes them: a tensor, a tuple or a dict each.

    Returns:
        The number of batches that were used.

    Raises:
        ChannelError: there is no batch, or no BatchNorm with running statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise ChannelError(f"{type(model).__name__} has no BatchNorm with running statistics to recalibrate")
    count = 0
    with mode(model, False), torch.no_grad(), fresh_statistics(norms):
        for batch in batches:
            args, kwargs = split_input(batch)
            model(*args, **kwargs)
            count += 1
        if count == 0:
            raise ChannelError("no batch was given; expected at least one, and a few for good statistics")
    return count
