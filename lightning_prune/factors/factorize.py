"""`factorize`: layers of a network become two of lower rank, by their truncated singular value decomposition."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_prune.errors import PlanError, TargetError
from lightning_prune.factors.units import FactorUnits, find_layers, path_of
from lightning_prune.functional.budget import one_share
from lightning_prune.functional.low_rank import rank_for_energy
from lightning_prune.plan.plan import PruningPlan


def plan_factors(
    model: nn.Module,
    *,
    ranks: int | Mapping[str, int] | None = None,
    energy: float | None = None,
    target_params: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> PruningPlan:
    """The plan that `factorize` applies; the model does not change. Arguments and errors are those of `factorize`."""
    if sum(given is not None for given in (ranks, energy, target_params)) != 1:
        raise ValueError(
            f"ranks={ranks}, energy={energy}, target_params={target_params}: give one of them, such as energy=0.9."
        )
    if energy is not None and not 0 < energy < 1:
        raise ValueError(f"energy={energy} is the share of each weight's squared norm that stays, in (0, 1).")
    one_share({"params": target_params})
    by_path = dict(ranks) if isinstance(ranks, Mapping) else {}
    rank = ranks if isinstance(ranks, int) else None
    if ranks is not None and min(by_path.values(), default=rank or 0) < 1:
        raise ValueError(
            f"ranks={ranks}: a rank is the number of channels between the two layers, at least 1; give one for all "
            "layers, or {path of a layer: rank}."
        )
    targets, _ = find_layers(model, include, exclude, trains=lambda p: True)
    if unknown := sorted(by_path.keys() - {path_of(t) for t in targets}):
        known = ", ".join(path_of(t) for t in targets[:5])
        raise PlanError(f"ranks names {unknown[:5]}, no layer that can be factorised; those are {known}, ...")
    units = FactorUnits.of(model, [t for t in targets if not by_path or path_of(t) in by_path])
    if target_params is not None:
        kept = units.select(units.energies(), target_params)
    elif energy is not None:
        kept = [torch.arange(len(b.values)) < rank_for_energy(b.values, energy) for b in units.bases]
    else:
        wanted = [by_path.get(path_of(t), rank or 0) for t in units.targets]
        kept = [torch.arange(len(b.values)) < most for b, most in zip(units.bases, wanted, strict=True)]
    plan = units.plan(kept)
    if not plan.factors:
        asked = f"ranks={ranks}" if ranks is not None else f"energy={energy}"
        raise TargetError(
            f"{asked} factorises nothing: at every layer's rank the two layers are no smaller than the one, which pays "
            f"below rank rows x columns / (rows + columns), such as {units.names[0]} below "
            f"{math.prod(units.shapes[0]) / units.costs[0]:.1f}. Ask for less."
        )
    return plan


def factorize(
    model: nn.Module,
    *,
    ranks: int | Mapping[str, int] | None = None,
    energy: float | None = None,
    target_params: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    optimizers: Iterable[Optimizer] = (),
    averaged: Iterable[nn.Module] = (),
) -> PruningPlan:
    """Replaces layers by two of lower rank, in place: the truncated singular value decomposition of their weights.

    Linear layers and ungrouped convolutions; the first of the two keeps a convolution's kernel and stride. A layer
    stays dense where two would not be smaller. No data is looked at: finetune afterwards.

    Args:
        model: any module.
        ranks: one rank for all layers, or {path of a layer: rank}, which leaves the others dense.
        energy: instead, the share of each weight's squared norm that stays, in (0, 1).
        target_params: instead, the share of the model's parameters that may be left, in (0, 1): components stay by
            their share of their layer's squared norm (`FactorUnits.energies`).
        include: fnmatch patterns on parameter or module names, whole or from any dot on; None takes all.
        exclude: patterns of layers to leave dense.
        optimizers, averaged: see `PruningPlan.apply`.

    Returns:
        The plan that was applied; ``plan.undo(model)`` multiplies the two again.

    Raises:
        ValueError: an argument out of its range, a pattern that matches nothing, or no layer that could be factorised.
        PlanError: ``ranks`` names something else.
        BudgetError: the target cannot be met.
        TargetError: no layer would be smaller; nothing was changed.
    """
    plan = plan_factors(
        model, ranks=ranks, energy=energy, target_params=target_params, include=include, exclude=exclude
    )
    plan.apply(model, optimizers=optimizers, averaged=averaged)
    return plan
