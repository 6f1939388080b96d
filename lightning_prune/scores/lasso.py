"""Channel selection by LASSO regression (He, Zhang, Sun, ICCV 2017, arXiv 1707.06168)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.scoring.base import register
from lightning_prune.scoring.reading import ReadingScore


def lasso_entries(gram: Tensor, prices: int = 40, steps: int = 100) -> Tensor:
    """The price at which each part enters the LASSO path of a sum of parts, as a share of the highest.

    The path is ``min over β of ½‖Σ part − Σ β part‖² + price·‖β‖₁`` (the paper's eq. 2), solved from high prices to low
    ones by FISTA.

    Args:
        gram: mean products of the parts, float64 [parts, parts].
        prices: how many, evenly in the logarithm from the highest to 1/1000 of it.
        steps: of the solver at each.

    Returns:
        [parts], from 0 to about 1; of those that enter at the same price the larger β decides.
    """
    target = gram.sum(1)
    highest = target.clamp_min(0).amax() if len(gram) else torch.zeros(())
    slope = torch.linalg.matrix_norm(gram, 2) if len(gram) else highest
    if not bool(slope > 0) or not bool(highest > 0):
        return torch.zeros_like(target)
    beta, entry = torch.zeros_like(target), torch.zeros_like(target)
    grid = torch.logspace(0, -3, prices, dtype=gram.dtype)
    for price in grid:
        ahead, pace = beta, 1.0
        for _ in range(steps):
            new = ahead - (gram @ ahead - target) / slope
            new = new.sign() * (new.abs() - price * highest / slope).clamp_min(0)
            following = (1 + (1 + 4 * pace * pace) ** 0.5) / 2
            ahead, beta, pace = new + (pace - 1) / following * (new - beta), new, following
        entry = torch.where((entry == 0) & (beta != 0), price, entry)
    between = (grid[-2] - grid[-1]) / 2 if prices > 1 else grid[-1]
    return entry + between * beta.abs() / (1 + beta.abs())


@register("lasso")
class LASSO(ReadingScore):
    """The order in which channels enter the LASSO path of the layers that read them, see `lasso_entries`.

    The paper raises the price of a layer until the wanted number is left (``scope="layer"``); one order over all
    layers, by the price as a share of a layer's highest, is our reading. Its refit by least squares is
    ``reconstruct="weights"``.

    Args:
        places: outputs of each layer that are looked at in each batch, drawn at random; the paper takes 10 an image.
    """

    def of_sums(self, gram: Tensor) -> Tensor:
        return lasso_entries(gram)
