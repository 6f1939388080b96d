"""The prunable weights of a network, as a score sees them: one long vector, layer after layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.functional import budget
from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.functional.order.kth import WHOLE, Shards
from lightning_prune.masks.ltp import chunked_sum
from lightning_prune.masks.shards import local
from lightning_prune.masks.targets import Target


@dataclass(frozen=True)
class WeightUnits:
    """The units of weight pruning.

    Attributes:
        targets: the layers' weights, tied ones once.
        floors: fewest weights that each keeps.
        shards: how the weights lie over processes.
        prices: what a kept weight of each layer costs, in MACs; (): each counts 1.
    """

    targets: tuple[Target, ...]
    floors: tuple[int, ...]
    shards: Shards = WHOLE
    prices: tuple[float, ...] = ()

    @property
    def names(self) -> list[str]:
        """The layers' names, those of their parameters."""
        return [t.name for t in self.targets]

    @property
    def numel(self) -> int:
        """Weights in all."""
        return sum(t.numel for t in self.targets)

    @property
    def cost(self) -> float:
        """What all weights cost."""
        return budget.cost([t.numel for t in self.targets], self.prices)

    def share(self, kept: Tensor) -> Tensor:
        """What that many kept weights of each layer [layers] cost, as a share of what all do; a scalar."""
        return (kept * kept.new_tensor(self.prices or 1.0)).sum() / self.cost

    def allowed(self, share: float) -> float:
        """The cost that a share of it allows, in whole weights where each counts 1."""
        return self.cost * share if self.prices else budget.keep_count(self.numel, share)

    def best(self, score: Tensor, share: float) -> list[Tensor]:
        """Masks of the highest scores [weights] that a share of the cost allows, each layer at least its floor."""
        keep = max(self.allowed(share), budget.cost(self.floors, self.prices))
        return budget.exact_masks(self.split(score), self.floors, keep, self.shards, self.cost, self.prices)

    def weights(self) -> list[Tensor]:
        """Each layer's weights now, in float32 or wider, detached; of layers in shards, this process's shards."""
        return [at_least_float32(local(t.param)) for t in self.targets]

    def sums(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Σ of(w) of each whole layer, float32 [layers]."""
        own = torch.stack([chunked_sum(local(t.param), of) for t in self.targets])
        return self.shards.total(own).float()

    def values(self) -> Tensor:
        """All weights now, [weights]; of layers in shards, those of this process."""
        return self.join(self.weights())

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor a layer, as one vector [weights]."""
        return torch.cat([p.reshape(-1) for p in parts])

    def split(self, values: Tensor) -> list[Tensor]:
        """The opposite of `join`."""
        shapes = [local(t.param).shape for t in self.targets]
        parts = values.split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def zeros(self) -> list[int]:
        """Exact zeros of each whole layer, counted."""
        return [t.numel - kept for t, kept in zip(self.targets, self.count(self.weights()), strict=True)]

    def count(self, parts: Sequence[Tensor]) -> list[int]:
        """How many values of each whole layer are not zero, or True."""
        counts = [torch.count_nonzero(part) for part in parts]
        return [int(n) for n in self.shards.total(torch.stack(counts))] if counts else []
