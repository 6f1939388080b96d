"""NISP: what the final responses need, carried back through the weights (Yu et al., CVPR 2018, arXiv 1711.05908)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from lightning_prune.channels.select.taps import Tap
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scoring.backward import carried_back
from lightning_prune.scoring.base import Score, register


def infinite_selection(moments: Tensor, alpha: float = 0.5) -> Tensor:
    """Inf-FS (Roffo et al., ICCV 2015): the energy of all paths over features, ``Σ_j [(I − rA)⁻¹ − I]_ij``.

    ``A_ij = α·max(σ_i, σ_j) + (1 − α)·(1 − |corr(i, j)|)`` and r is 0.9 over A's spectral radius. Standard deviations
    are shares of the largest; Pearson's correlation stands for Spearman's (ours: means over batches give it).

    Args:
        moments: means of features in the first row, of their products below: float64 [C + 1, C].
        alpha: weight of the spread.

    Returns:
        [C], positive where any feature varies.
    """
    mean, square = moments[0], moments[1:]
    covariance = square - mean[:, None] * mean
    spread = covariance.diagonal().clamp_min(0).sqrt()
    scale = spread[:, None] * spread
    alike = torch.where(scale > 0, (covariance / scale).abs().clamp_max(1), 1.0)  # what never varies tells nothing
    share = spread / spread.amax().clamp_min(torch.finfo(mean.dtype).tiny)
    paths = alpha * torch.maximum(share[:, None], share) + (1 - alpha) * (1 - alike)
    rate = 0.9 / torch.linalg.eigvalsh(paths).abs().amax().clamp_min(1e-12)
    energy: Tensor = torch.linalg.inv(torch.eye(len(mean), dtype=mean.dtype) - rate * paths).sum(1) - 1
    return energy


@register("nisp")
class NISP(Score):
    """Neuron importance score propagation: `infinite_selection` of what the last layers read, then ``s = |W|ᵀ s``.

    Final responses are taken as means over space. As in the paper a kernel counts by the sum of its magnitudes, and
    activations, norms and depthwise convolutions are passed by. The paper takes a share of each layer
    (``scope="layer"``); one order over layers, by their means, is our reading. See `scoring.backward.carried_back`.
    """

    needs = "activations"

    def of_tap(self, tap: Tap, x: Tensor, gradient: Tensor | None = None) -> Tensor:
        pooled = x.double().flatten(2).mean(2) if x.ndim > 2 else x.double()
        return torch.cat([pooled.mean(0, keepdim=True), pooled.T @ pooled / len(pooled)])

    def combine(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Tensor:
        last = {name: partial(infinite_selection, moments.cpu()) for name, moments in values.items()}
        return units.normalize(carried_back(units, last), "mean")
