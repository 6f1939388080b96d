"""Methods written against the public base classes alone, each in a few lines: what a new method costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_prune import ChannelPruning, ChannelUnits, Gate, WeightPruning, WeightUnits


class WeightScore(WeightPruning):
    """A score: the largest weights stay."""

    def score(self, units: WeightUnits) -> Tensor:
        return units.values().abs()


class ChannelScore(ChannelPruning):
    """A score: the filters of largest norm stay."""

    def score(self, units: ChannelUnits) -> Tensor:
        norms = {name: w.detach().flatten(1).norm(dim=1) for name, w in units.weights().items()}
        return units.normalize(units.aggregate(norms))


class WeightStatistics(WeightPruning):
    """Statistics: weights count as much as the inputs that they meet (Sun et al. 2023)."""

    observes = "input"

    def observe(self, name: str, activation: Tensor, labels: Tensor | None) -> Tensor:
        return activation.transpose(0, 1).flatten(1).square().mean(1)

    def score(self, units: WeightUnits) -> Tensor:
        rows = zip(units.targets, units.weights(), strict=True)
        return units.join([w.abs() * self.observed[t.name].sqrt().view(1, -1, *[1] * (w.ndim - 2)) for t, w in rows])


class ChannelStatistics(ChannelPruning):
    """Statistics: the channels of largest mean activation stay."""

    def observe(self, name: str, activation: Tensor, labels: Tensor | None) -> Tensor:
        return activation.transpose(0, 1).flatten(1).abs().mean(1)

    def score(self, units: ChannelUnits) -> Tensor:
        return units.aggregate(self.observed)


class Sigmoid(Gate):
    """A gate with a trainable logit for each index of one dim, and a price for what is open."""

    def __init__(self, size: int, dim: int) -> None:
        self.logits, self.dim = torch.full((size,), 2.0, requires_grad=True), dim

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.logits.sigmoid().view([-1 if d == self.dim else 1 for d in range(x.ndim)]).to(x.dtype)

    def parameters(self) -> Sequence[Tensor]:
        return [self.logits]

    def penalty(self) -> Tensor:
        return 0.01 * self.logits.sigmoid().sum()


class WeightGates(WeightPruning):
    """Gates with trainable parameters: one for each input channel of a weight."""

    def gates(self, units: WeightUnits) -> Mapping[str, Gate]:
        self.sigmoids = {t.name: Sigmoid(t.param.shape[1], 1) for t in units.targets}
        return self.sigmoids

    def score(self, units: WeightUnits) -> Tensor:
        pairs = zip(units.names, units.weights(), strict=True)
        return units.join([self.sigmoids[name](w).detach().abs() for name, w in pairs])


class ChannelGates(ChannelPruning):
    """Gates with trainable parameters: one for each output channel of a layer."""

    def gates(self, units: ChannelUnits) -> Mapping[str, Gate]:
        self.sigmoids = {path: Sigmoid(len(ids), 1) for path, ids in units.sites().items()}
        return self.sigmoids

    def score(self, units: ChannelUnits) -> Tensor:
        return units.aggregate({path: gate.logits.detach().sigmoid() for path, gate in self.sigmoids.items()})
