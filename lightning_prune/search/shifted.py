"""The widths of all layers as one vector: by how much each layer's channels are held for less than others'."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_prune.channels.select.taps import Tap
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.errors import PlanError
from lightning_prune.scores import Score, ScoreLike, find_score
from lightning_prune.scoring.scope import importance


def shifted(quantile: Tensor, layer: Tensor, shifts: Tensor) -> Tensor:
    """Quantiles of channel groups in their layers, less a number for each layer.

    One threshold θ over all of them removes the share ``shift + θ`` of a layer, as far as that is one. So any widths
    can be asked for, the selector's θ meets the budget, and a number that is added to all shifts changes nothing.

    Args:
        quantile: in (0, 1), float64 [groups]; +inf where there is none.
        layer: of each group, int64 [groups]; -1 where it stays.
        shifts: of each layer, [layers].

    Returns:
        float64 [groups].
    """
    per_group = torch.cat([shifts.double(), torch.zeros(1, dtype=torch.float64)])[layer]  # -1 is the zero at the end
    return quantile - per_group


class ShiftedScore(Score):
    """A score's quantiles in each layer, shifted by a number for each layer: what a search found, as a score.

    To be ranked over all layers (``scope="global"``).

    Args:
        base: which channels of a layer go first.
        shifts: {name of a layer, the first of `ChannelUnits.layers`: share by which more of it goes than of a layer
            of 0}.
    """

    by = None

    def __init__(self, base: ScoreLike, shifts: Mapping[str, float]) -> None:
        self.base, self.shifts = find_score(base), dict(shifts)
        self.needs = self.base.needs  # type: ignore[misc]  # what it looks at is the base's to say
        self.loss = self.base.loss

    def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor | None:
        return self.base.of_layer(x, gradient)

    def of_tap(self, tap: Tap, x: Tensor, gradient: Tensor | None = None) -> Tensor | None:
        return self.base.of_tap(tap, x, gradient)

    def of_weights(self, units: ChannelUnits) -> Mapping[str, Tensor]:
        return self.base.of_weights(units)

    def of_batch(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.base.of_batch(units, values)

    def means(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.base.means(values)

    def combine(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Tensor:
        names = [tensors[0] for tensors in units.layers]
        if missing := sorted(set(names) ^ set(self.shifts)):
            raise PlanError(
                f"shifts are of other layers than {type(units.network).__name__} has: {missing[:4]} "
                "stand on one side alone. Search on this network, with the same layers excluded"
            )
        shifts = torch.tensor([self.shifts[name] for name in names], dtype=torch.float64)
        return shifted(importance(self.base, units, values, "layer"), units.layer, shifts)
