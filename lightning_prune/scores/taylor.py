"""First-order Taylor expansion of the loss in gates on channels (Molchanov et al., CVPR 2019, arXiv 1906.10771)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scoring.base import GradientScore, register


def gate_gradients(x: Tensor, gradient: Tensor) -> Tensor:
    """The derivative of the loss by a factor of 1 on each channel of each sample: Σ x·dL/dx over positions.

    Minus it is, to first order, what the loss changes by when the channel becomes zero.

    Args:
        x: activation, [N, C, ...].
        gradient: of the loss by it, of the same shape.

    Returns:
        [N, C].
    """
    product = x * gradient
    return product.flatten(2).sum(2) if product.ndim > 2 else product


@register("taylor")
class Taylor(GradientScore):
    """Squared change of the loss, to first order, when a group's gate closes; the mean over batches.

    The gate of a group is on all that goes with it: what its channels give to every layer that reads them adds up
    before it is squared. All layers are in units of the loss, so nothing is normalised, as in the paper. Channels of
    queries and keys count once in each factor of their product.

    Args:
        loss: (network's output, labels) → a scalar, a mean over the batch.
    """

    def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor:
        assert gradient is not None
        return gate_gradients(x, gradient).sum(0)

    def of_batch(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"gates": units.aggregate(values, "sum").square()}

    def combine(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Tensor:
        return values["gates"]
