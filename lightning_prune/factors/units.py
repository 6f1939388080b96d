"""The layers of a network that can become two, and their rank-one components: the units of factorisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_prune.channels.surgery.factored import FactoredLayer, why_not
from lightning_prune.functional import low_rank
from lightning_prune.functional.budget import floors
from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.masks.targets import Skipped, Target, find_targets, needs_grad
from lightning_prune.plan.factor import Factor
from lightning_prune.plan.plan import PruningPlan


def find_layers(
    network: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    skip_first: bool = False,
    skip_last: bool = False,
    trains: Callable[[Tensor], bool] = needs_grad,
) -> tuple[list[Target], list[Skipped]]:
    """Linear layers and ungrouped convolutions that two of a lower rank can stand for, narrowed as `find_targets` does.

    Returns:
        The layers in the network's order, and what was left out with the reason.

    Raises:
        ValueError: a pattern matches nothing, or no layer is left.
    """
    targets, skipped = find_targets(network, include, exclude, skip_first, skip_last, trains)
    holders: dict[int, int] = {}
    parts = {id(part) for layer in network.modules() if isinstance(layer, FactoredLayer) for part in layer}
    for module in network.modules():
        for p in module._parameters.values():
            holders[id(p)] = holders.get(id(p), 0) + 1
    found = []
    for target in targets:
        reason = "a part of a factorised layer" if id(target.module) in parts else why_not(target.module)
        if reason is None and holders[id(target.param)] > 1:
            reason = "its weight is shared with another layer"
        if reason is None:
            found.append(target)
        else:
            skipped.append(Skipped(target.name, reason))
    if not found:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
        raise ValueError(f"No layer of {type(network).__name__} can be factorised ({why}).")
    return found, skipped


def path_of(target: Target) -> str:
    """The path of a weight's layer; "" for the network itself."""
    return target.name.rpartition(".")[0]


@dataclass(frozen=True)
class FactorUnits:
    """The units of factorisation: rank-one components of the weights of some layers.

    Attributes:
        targets: the layers' weights.
        shapes: of these while they are dense, (out, in, *kernel) each.
        bases: of each weight as a matrix [out, in · kernel positions], as it was when the units were made.
        least: fewest components that each keeps.
        others: parameters of the network beside these weights.
    """

    targets: tuple[Target, ...]
    shapes: tuple[tuple[int, ...], ...]
    bases: tuple[low_rank.Basis, ...]
    least: tuple[int, ...]
    others: int

    @staticmethod
    def of(network: nn.Module, targets: Sequence[Target], min_keep: float = 0.0) -> FactorUnits:
        """Those of the weights as they are now; min_keep: least share of each layer's components to keep."""
        bases = [low_rank.basis(t.param.flatten(1)) for t in targets]
        bases = [
            low_rank.Basis(b.vectors.to(at_least_float32(t.param.detach())), b.values)
            for b, t in zip(bases, targets, strict=True)
        ]
        return replace(FactorUnits._unmeasured(network, targets, min_keep), bases=tuple(bases))

    @staticmethod
    def _unmeasured(network: nn.Module, targets: Sequence[Target], min_keep: float) -> FactorUnits:
        shapes = tuple(tuple(t.param.shape) for t in targets)
        least = floors([min(shape[0], math.prod(shape[1:])) for shape in shapes], min_keep)
        others = sum(p.numel() for p in network.parameters()) - sum(map(math.prod, shapes))
        return FactorUnits(tuple(targets), shapes, (), tuple(least), others)

    @staticmethod
    def check(network: nn.Module, targets: Sequence[Target], min_keep: float, share: float) -> None:
        """Raises BudgetError if a share of the network's parameters is less than these weights can be brought to."""
        units = FactorUnits._unmeasured(network, targets, min_keep)
        low_rank.check_floor(units.matrices, units.least, units.budget(share))

    @property
    def names(self) -> list[str]:
        """The names of the layers' weights."""
        return [t.name for t in self.targets]

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(rows, columns) of each weight."""
        return [(shape[0], math.prod(shape[1:])) for shape in self.shapes]

    @property
    def costs(self) -> list[int]:
        """Weights that a component of each layer takes in the two parts: rows + columns."""
        return [sum(shape) for shape in self.matrices]

    @property
    def numel(self) -> int:
        """Weights of the layers, dense."""
        return sum(map(math.prod, self.shapes))

    @property
    def parameters(self) -> int:
        """Parameters of the network, dense."""
        return self.others + self.numel

    def split(self, scores: Tensor) -> list[Tensor]:
        """One value a component, [components] of all layers, as one tensor a layer."""
        return list(scores.split([len(b.values) for b in self.bases]))

    def energies(self) -> Tensor:
        """Each component's share of its layer's squared norm, where a layer counts as its size; [components].

        For each weight that the component takes, so that layers of all shapes lose alike.
        """
        shares = [b.values.square() / b.values.square().sum().clamp_min(1e-30) for b in self.bases]
        rows = zip(shares, self.shapes, self.costs, strict=True)
        return torch.cat([share * (math.prod(shape) / cost) for share, shape, cost in rows])

    def budget(self, share: float) -> int:
        """Weights that a share of the network's parameters leaves to the layers."""
        return int(share * self.parameters) - self.others

    def select(self, scores: Tensor, share: float) -> list[Tensor]:
        """Which components stay, one bool tensor a layer, for a share of the network's parameters.

        Raises:
            BudgetError: it cannot be met.
        """
        return low_rank.components_for_budget(self.split(scores), self.matrices, self.least, self.budget(share))

    def plan(self, kept: Sequence[Tensor]) -> PruningPlan:
        """The layers of which so few components stay that two layers are smaller; the others stay dense."""
        factors = {}
        for target, shape, mask in zip(self.targets, self.shapes, kept, strict=True):
            factor = Factor(shape, int(mask.sum()))
            if factor.removed > 0:
                factors[path_of(target)] = factor
        return PruningPlan({}, factors=factors)
