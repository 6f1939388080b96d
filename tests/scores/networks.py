"""Networks whose scores can be worked out, and what the tests ask of a score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scores import Score, find_score
from lightning_prune.scoring.collect import collect, run_network


def units_of(network: nn.Module, example: Tensor) -> ChannelUnits:
    return ChannelUnits.of(network, ChannelGraph.trace(network, example))


def score_of(units: ChannelUnits, score: str | Score, batches: Any = ()) -> Tensor:
    """Importance of the groups."""
    rating = find_score(score)
    return rating.combine(units, collect(rating, units, batches, run_network(units.network)))


def two_layers(hidden: int = 6, seed: int = 0) -> nn.Sequential:
    """Two linear layers and nothing between them, float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), nn.Linear(hidden, 3)).double()


def convolutions(padding: int = 0) -> nn.Sequential:
    """Convolutions, of which the second has no bias and a BatchNorm behind it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=padding, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip
