"""Starting a network of given shapes from scratch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer


def reinitialise(
    network: nn.Module, optimizers: Iterable[Optimizer], seed: int, averaged: Iterable[nn.Module] = ()
) -> None:
    """Gives every layer fresh weights and drops the optimizers' state of them.

    Layers draw by their own ``reset_parameters``, from a generator of the given seed; the global one is left alone.
    Averaged copies of the network start anew with it.
    """
    mine = set(network.parameters())
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None)
            own = [p.numel() for p in module.parameters(recurse=False)]
            if callable(reset) and own and all(own):  # an empty layer has nothing to draw
                reset()
    for optimizer in optimizers:
        for param in [p for p in optimizer.state if p in mine]:
            del optimizer.state[param]
    for copy in averaged:
        copy.load_state_dict(network.state_dict())
