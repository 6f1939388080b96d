"""COP: correlation of channels in the weights that read them (Wang et al., IJCAI 2019, arXiv 1906.10337)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_prune.channels.select.taps import INPUT
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.scoring.base import Score, register


def cop(weight: Tensor, top: int = 3) -> Tensor:
    """How little each input channel of a layer resembles others: 1 − the mean of its ``top`` largest resemblances.

    The resemblance of two is the absolute Pearson correlation of their weights over outputs, averaged over the
    positions of the kernel, as a share of the layer's largest.

    Args:
        weight: of the layer that reads the channels, [out, in, ...].
        top: how many.

    Returns:
        [in], from 0 to 1, float32 or wider.
    """
    rows = at_least_float32(weight.detach()).reshape(*weight.shape[:2], -1).permute(2, 1, 0)
    rows = torch.nn.functional.normalize(rows - rows.mean(2, keepdim=True), dim=2)
    found = (rows @ rows.transpose(1, 2)).abs().mean(0).fill_diagonal_(0)
    top = min(top, len(found) - 1)
    if top < 1:
        return torch.ones_like(found[0])
    largest: Tensor = found.topk(top, dim=1).values.mean(1)
    return 1 - largest / found.max().clamp_min(torch.finfo(found.dtype).tiny)


@register("cop")
class COP(Score):
    """`cop` in the layers that read a channel, normalised by the layer's largest correlation, as in the paper.

    Its terms for parameters and computation are left out: they steer a budget, and ours is met as it is given. Channels
    that no plain layer reads (queries and keys, inputs of grouped convolutions) have no score and stay.

    Args:
        top: correlations that count, of each channel.
    """

    by = None

    def __init__(self, top: int = 3) -> None:
        self.top = top

    def of_weights(self, units: ChannelUnits) -> Mapping[str, Tensor]:
        readers = {name: tap.module for name, tap in units.taps.items() if name.startswith(INPUT)}
        plain = {n: m for n, m in readers.items() if isinstance(m, nn.Linear) or (m.groups == 1 and not m.transposed)}
        return {name: cop(module.weight, self.top) for name, module in plain.items()}
