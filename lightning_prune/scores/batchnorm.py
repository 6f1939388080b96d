"""BatchNorm scale factors as a score (Network Slimming, Liu et al., ICCV 2017, arXiv 1708.06519)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.errors import ChannelError
from lightning_prune.scoring.base import Score, register


@register("bn_scale")
class BatchNormScale(Score):
    """|γ|, one order for the whole network and nothing to make layers comparable, as in the paper.

    Tied channels count by the root mean square of their factors. Channels without a BatchNorm have no score and stay.
    It tells most after training with L1 on γ: `NetworkSlimmingCallback`.
    """

    def of_weights(self, units: ChannelUnits) -> Mapping[str, Tensor]:
        return {}

    def combine(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Tensor:
        if units.scales is None:
            raise ChannelError(
                f"score='bn_scale' needs BatchNorm scale factors on channels that may go, and "
                f"{type(units.network).__name__} has none. Use a score of weights or activations, such as 'l2' or "
                "'taylor'"
            )
        score = units.from_scales(units.scales.importance(units.scales.read()))
        return score.masked_fill(~units.free, float("inf"))
