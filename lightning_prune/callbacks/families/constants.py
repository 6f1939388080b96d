"""Channels that the zeros have made constant: of their BatchNorm the shift is left, and no more.

In train mode such a channel comes out of BatchNorm as its shift, whatever the scale. In eval mode it does only where
the running mean is the constant to the last digit: its distance is multiplied by 1/√ε, 316 for ε = 1e-5, and running
averages lag. A network that trains well can so evaluate at chance. With a scale of zero both modes agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_prune.callbacks.families.zeros import prune_everywhere
from lightning_prune.masks import Target
from lightning_prune.masks.shards import local, part, reshard
from lightning_prune.support.averages import Lookalike

_CONSTANT = 1e-3  # of ε: what such a channel varies by comes out of BatchNorm below 0.03 of its scale


def _constant(root: nn.Module) -> Iterator[tuple[Target, Tensor]]:
    """BatchNorm scales that train, and which of their channels are constant: bool [channels]."""
    reshard(root)  # what is written into a gathered parameter is lost
    for name, norm in root.named_modules():
        if isinstance(norm, _BatchNorm) and norm.running_var is not None and norm.affine and norm.weight.requires_grad:
            still = norm.running_var <= _CONSTANT * norm.eps
            if bool(still.any()):
                yield Target(f"{name}.weight", norm.weight, norm), still


@torch.no_grad()
def silence_constants(trainer: Trainer, root: nn.Module, copies: Sequence[Lookalike] = ()) -> None:
    """Zero the scales of constant channels wherever they live: the model, optimizer state, averaged copies.

    To be called when the running variances are those of the weights as they are.
    """
    found = list(_constant(root))
    masks = [part(~still, target.param) for target, still in found]
    prune_everywhere(trainer, [target for target, _ in found], masks, copies)
    if found:
        count = sum(int(still.sum()) for _, still in found)
        rank_zero_info(
            f"{count:,} BatchNorm channels became constant without their weights: their scales are zero now, "
            "so that they evaluate as they train."
        )


def silenced(root: nn.Module) -> list[nn.Parameter]:
    """The scales in which constant channels have a zero: a checkpoint needs no list of them beside it."""
    return [target.param for target, _ in _constant(root) if bool((local(target.param) == 0).any())]
