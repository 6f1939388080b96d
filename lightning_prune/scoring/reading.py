"""Scores of what reads the channels: from the products of what they add to its sums."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_prune.channels.select.taps import Tap
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scoring.base import Score
from lightning_prune.scoring.contributions import contributions, reads_plainly


class ReadingScore(Score):
    """Base of scores by reconstruction: a channel is worth what the layers that read it lose. Give `of_sums`.

    Channels that no plain layer reads (queries and keys, inputs of grouped convolutions) have no score and stay. Where
    several layers read a channel, the mean of their values counts.

    Args:
        places: outputs of each layer that are looked at in each batch, drawn at random.
    """

    needs, by = "activations", None

    def __init__(self, places: int = 512) -> None:
        if places < 1:
            raise ValueError(f"places={places} must be a positive number, such as 512.")
        self.places = places

    def of_sums(self, gram: Tensor) -> Tensor:
        """Values of the parts of a sum.

        Args:
            gram: mean products of what they add, as a share of the whole sum's mean square, float64 [parts, parts].
                The whole sum may have other parts beside them.

        Returns:
            [parts].
        """
        raise NotImplementedError

    def of_tap(self, tap: Tap, x: Tensor, gradient: Tensor | None = None) -> Tensor | None:
        """The products of what each group adds; the last row and column are what stays in any case."""
        if tap.side != "input" or not reads_plainly(tap.module):
            return None
        added = contributions(tap.module, x, self.places).double()
        groups, part = tap.groups.to(x.device).unique(return_inverse=True)
        if groups[0] >= 0:  # the group -1 comes first, where there is one
            part, groups = part + 1, torch.cat([groups.new_tensor([-1]), groups])
        sums = added.new_zeros(len(added), len(groups)).index_add_(1, part, added)
        return sums.T @ sums / len(sums)

    def combine(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Tensor:
        found = {}
        for name, gram in values.items():
            gram = gram.cpu()
            share = gram[1:, 1:] / gram.sum().clamp_min(torch.finfo(gram.dtype).tiny)
            part = units.taps[name].groups
            rank = torch.bucketize(part.clamp_min(0), part[part >= 0].unique())
            found[name] = self.of_sums(share)[rank]
        return super().combine(units, found)
