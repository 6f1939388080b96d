"""Random scores: the control that every other score has to beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scoring.base import Score, register


@register("random")
class Random(Score):
    """Uniform in [0, 1), the same for the same seed and network.

    Args:
        seed: of its own generator.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def of_weights(self, units: ChannelUnits) -> Mapping[str, Tensor]:
        return {}

    def combine(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Tensor:
        score = torch.rand(units.size, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return score.masked_fill(~units.free, torch.inf)
