"""MACs by weight: closed forms of each kind of layer, uses of tied weights, casts, and what has no weight."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune.support.macs import count_macs, macs_by_weight


class Kinds(nn.Module):
    """One layer of each kind on [N, 4, 6, 6]; the last one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.up = nn.ConvTranspose2d(8, 2, 2, stride=2)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.twice = nn.Linear(8, 8)
        self.idle = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.conv(x))
        tokens = x.flatten(2).transpose(1, 2)
        mixed = self.mix(tokens, tokens, tokens)[0]
        return self.twice(F.linear(mixed, self.twice.weight.t())).sum() + self.up(x).sum()


def test_macs_by_weight_are_those_of_closed_forms() -> None:
    net, x = Kinds().eval(), torch.randn(2, 4, 6, 6)
    weights = {n: p for n, p in net.named_parameters() if p.ndim > 1}
    positions = 2 * 3 * 3  # of the maps behind the first layer
    for cast in (False, True):
        with torch.no_grad(), torch.autocast("cpu", enabled=cast), macs_by_weight(weights) as found:
            net(x)
        assert found.by_weight == {
            "conv.weight": positions * 8 * 4 * 9,
            "depthwise.weight": positions * 8 * 9,
            "up.weight": positions * 8 * 2 * 4,
            "mix.in_proj_weight": positions * 24 * 8,
            "mix.out_proj.weight": positions * 8 * 8,
            "twice.weight": 2 * positions * 8 * 8,
            "idle.weight": 0,
        }
        attention = 2 * positions * 9 * 8  # scores and sums of 9 tokens, which have no weight
        assert found.total - sum(found.by_weight.values()) == attention
        assert found.total == count_macs(net, x)
