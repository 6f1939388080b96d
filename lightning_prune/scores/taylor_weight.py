"""First-order Taylor expansion of the loss in single weights (Molchanov et al., CVPR 2019, arXiv 1906.10771)."""

from __future__ import annotations

from torch import Tensor

from lightning_prune.scoring.base import GradientScore, register


@register("taylor_weight")
class TaylorWeight(GradientScore):
    """Σ (w·dL/dw)² over a filter's weights, tied filters added; the mean over batches.

    The paper's other sum, of the squares of single weights, in units of the loss: nothing is normalised. In a network
    with BatchNorm, a filter's own weights say less than its gate: see `Taylor`.

    Args:
        loss: (network's output, labels) → a scalar, a mean over the batch.
    """

    needs, reduce, by = "weight gradients", "sum", None

    def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor:
        assert gradient is not None
        return (x * gradient).square().flatten(1).sum(1)
