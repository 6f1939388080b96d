"""Fresh BatchNorm statistics after surgery that was not exact."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lightning_prune.channels.graph import mode, split_input
from lightning_prune.errors import ChannelError


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
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    if not norms:
        raise ChannelError(f"{type(model).__name__} has no BatchNorm with running statistics to recalibrate")
    momenta = [m.momentum for m in norms]
    count = 0
    with mode(model, False), torch.no_grad():
        try:
            for batch in batches:
                if count == 0:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None  # a cumulative average
                        norm.training = True
                args, kwargs = split_input(batch)
                model(*args, **kwargs)
                count += 1
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if count == 0:
        raise ChannelError("no batch was given; expected at least one, and a few for good statistics")
    return count
