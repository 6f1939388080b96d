"""The prunable weights of a network, as a score sees them: one long vector, layer after layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.masks.targets import Target


@dataclass(frozen=True)
class WeightUnits:
    """The units of weight pruning.

    Attributes:
        targets: the layers' weights, tied ones once.
        floors: fewest weights that each keeps.
    """

    targets: tuple[Target, ...]
    floors: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """The layers' names, those of their parameters."""
        return [t.name for t in self.targets]

    @property
    def numel(self) -> int:
        """Weights in all."""
        return sum(t.numel for t in self.targets)

    def weights(self) -> list[Tensor]:
        """Each layer's weights now, in float32 or wider, detached."""
        return [at_least_float32(t.param.detach()) for t in self.targets]

    def values(self) -> Tensor:
        """All weights now, [weights]."""
        return self.join(self.weights())

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor a layer, as one vector [weights]."""
        return torch.cat([p.reshape(-1) for p in parts])

    def split(self, values: Tensor) -> list[Tensor]:
        """The opposite of `join`."""
        parts = values.split([t.numel for t in self.targets])
        return [part.view_as(t.param) for part, t in zip(parts, self.targets, strict=True)]

    def zeros(self) -> list[int]:
        """Exact zeros of each layer, counted."""
        return [t.numel - int(torch.count_nonzero(t.param.detach())) for t in self.targets]
