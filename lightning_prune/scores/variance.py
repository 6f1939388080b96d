"""Variance of activations (Berisha, Mehnert, Condurache, ICCV 2025, arXiv 2507.12988)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scoring.base import Score, register


def moments(x: Tensor) -> Tensor:
    """Mean and mean square of each channel over samples and positions.

    Args:
        x: activation, [N, C, ...].

    Returns:
        float64 [2, C].
    """
    flat = x.double().transpose(0, 1).flatten(1)
    return torch.stack([flat.mean(1), flat.square().mean(1)])


@register("variance")
class Variance(Score):
    """Variance of what the next layers read; the mean of what goes is added to the biases behind.

    A channel that hardly varies is replaced by its mean. Variances are compared as they are, over all layers; the paper
    prunes the hidden channels of MLPs, and all other channels are our extension. Batches count alike.
    """

    needs, by = "activations", None

    def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor:
        return moments(x)

    def combine(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Tensor:
        spread = {name: (square - mean.square()).clamp_min(0) for name, (mean, square) in values.items()}
        return super().combine(units, spread)

    def means(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: mean for name, (mean, _) in values.items()}
