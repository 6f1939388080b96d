"""First-order Taylor expansion of the loss in feature maps (Molchanov et al., ICLR 2017, arXiv 1611.06440)."""

from __future__ import annotations

from torch import Tensor

from lightning_prune.scores.taylor import gate_gradients
from lightning_prune.scoring.base import GradientScore, register


@register("taylor_activation")
class TaylorActivation(GradientScore):
    """|mean over a feature map of z·dL/dz|, averaged over samples, by the Euclidean norm of its layer's.

    The norm is the paper's. Tied channels, of which it has none, count by their mean (our reading).

    Args:
        loss: (network's output, labels) → a scalar, a mean over the batch.
    """

    by = "norm"

    def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor:
        assert gradient is not None
        positions = x[0, 0].numel() if x.numel() else 1
        return gate_gradients(x, gradient).abs().mean(0) / positions
