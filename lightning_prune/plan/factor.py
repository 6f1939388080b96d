"""What a plan says of one factorised layer, and what later cuts of its two parts mean for the layer itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_prune.errors import PlanError
from lightning_prune.plan.cut import Change, Cut

FIRST, SECOND = "0", "1"  # the two parts, by their names below the layer
_KEPT_BY = {"in_features": FIRST, "in_channels": FIRST, "out_features": SECOND, "out_channels": SECOND}


@dataclass(frozen=True)
class Factor:
    """A linear layer or convolution that becomes two: in -> rank without a bias, rank -> out with the layer's own.

    Attributes:
        shape: of the layer's weight when it is factorised, after the plan's cuts: (out, in, \\*kernel).
        rank: channels between the two.
    """

    shape: tuple[int, ...]
    rank: int

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of the weight as a matrix: outputs, and inputs times kernel positions."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def numel(self) -> int:
        """Weights of both parts."""
        return self.rank * sum(self.matrix)

    @property
    def removed(self) -> int:
        """Weights that the two parts have less than the layer; positive, see `check`."""
        return math.prod(self.shape) - self.numel

    def check(self, path: str) -> None:
        """Raises PlanError unless the two parts have fewer weights than the layer."""
        if self.rank < 1 or len(self.shape) < 2 or self.removed <= 0:
            rows, columns = self.matrix if len(self.shape) > 1 else (0, 0)
            raise PlanError(
                f"the plan factorises {path:.200} of shape {self.shape} at rank {self.rank}: expected a rank of at "
                f"least 1 with rank x ({rows} + {columns}) < {rows} x {columns}; leave the layer dense"
            )

    def shapes(self, path: str) -> dict[str, tuple[int, ...]]:
        """{name of each part's weight: its shape}"""
        ones = (1,) * (len(self.shape) - 2)
        return {
            f"{path}.{FIRST}.weight": (self.rank, *self.shape[1:]),
            f"{path}.{SECOND}.weight": (self.shape[0], self.rank, *ones),
        }


def name_of_part(path: str, attribute: str) -> str:
    """Where a tensor of the layer is once the layer is two: its bias stands on the second part."""
    return f"{path}.{SECOND}.{attribute}"


def pull_back(
    factors: Mapping[str, Factor], cuts: Mapping[str, Cut], attributes: Mapping[str, Mapping[str, Change]]
) -> tuple[dict[str, Cut], dict[str, dict[str, Change]], dict[str, Factor]]:
    """Cuts of a factorised network as cuts of the dense one: (cuts, attributes, factors at the shapes after them).

    Inputs of the first part and outputs of the second are those of the layer; channels between are its rank.

    Raises:
        PlanError: the cuts do not fit the parts, or nothing would be left of one.
    """
    own, changed, left = dict(cuts), {path: dict(c) for path, c in attributes.items()}, dict(factors)
    for path, factor in factors.items():
        (first_name, first_shape), (second_name, second_shape) = factor.shapes(path).items()
        first = own.pop(first_name, Cut(first_shape, {}))
        second = own.pop(second_name, Cut(second_shape, {}))
        if (first.shape, second.shape) != (first_shape, second_shape) or 0 in first.new_shape + second.new_shape:
            raise PlanError(
                f"a plan cuts the parts of {path} of shapes {first.shape} and {second.shape} to {first.new_shape} and "
                f"{second.new_shape}: they are {first_shape} and {second_shape}, and keep a channel. Undo the "
                "factorisation first to remove all of the layer: lightning_prune.plan_of(model).undo(model)"
            )
        kept = {0: second.kept[0]} if 0 in second.kept else {}
        kept |= {dim: indices for dim, indices in first.kept.items() if dim}
        if kept:
            own[f"{path}.weight"] = Cut(factor.shape, kept)
        if (bias := own.pop(name_of_part(path, "bias"), None)) is not None:
            own[f"{path}.bias"] = bias
        left[path] = Factor((second.new_shape[0], *first.new_shape[1:]), first.new_shape[0])
        for part in (FIRST, SECOND):
            for name, change in changed.pop(f"{path}.{part}", {}).items():
                if _KEPT_BY.get(name) == part:
                    changed.setdefault(path, {})[name] = change
    return own, changed, left
