"""How ranks are asked for, and what cannot become two layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import (
    PlanError,
    PruningPlan,
    factorize,
    plan_factors,
    plan_of,
)
from lightning_prune.errors import BudgetError, TargetError
from tests.factors.networks import factorized, network


def test_how_ranks_are_asked_for() -> None:
    model = network()
    assert {p: f.rank for p, f in plan_factors(model, ranks=3).factors.items()} == {"0": 3, "3": 3, "6": 3, "10": 3}
    assert {p: f.rank for p, f in plan_factors(model, ranks=6, exclude=["10"]).factors.items()} == {"0": 6, "6": 6}
    for energy in (0.5, 0.7):
        for path, factor in plan_factors(model, energy=energy).factors.items():
            s = torch.linalg.svdvals(model.get_submodule(path).weight.flatten(1)).square()
            assert s[: factor.rank].sum() >= energy * s.sum() > s[: factor.rank - 1].sum()
    dense = sum(p.numel() for p in model.parameters())
    plan = factorize(model, target_params=0.6)
    assert 0.6 * dense - 39 < sum(p.numel() for p in model.parameters()) <= 0.6 * dense
    assert str(plan_of(model)) == str(plan)


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_what_cannot_become_two_is_named() -> None:
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    attention = nn.MultiheadAttention(8, 2)
    for model, reason in (
        (tied, "shared with another layer"),
        (nn.Sequential(Own(8, 8)), "Own has a forward of its own"),
        (attention, "no linear layer or convolution with a weight of its own"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), "a grouped convolution"),
        (factorized(nn.Sequential(nn.Linear(8, 8)), 2), "a part of a factorised layer"),
        (nn.Sequential(nn.Linear(1, 8)), "two layers of rank 1 are no smaller"),
    ):
        with pytest.raises(ValueError, match=f"can be factorised .*{reason}"):
            factorize(model, ranks=1)
    model = network()
    state = copy.deepcopy(model.state_dict())
    for options, error, message in (
        ({"ranks": 2, "energy": 0.5}, ValueError, "give one of them"),
        ({}, ValueError, "give one of them"),
        ({"energy": 1.5}, ValueError, r"energy=1.5 .* in \(0, 1\)"),
        ({"ranks": {}}, ValueError, r"ranks={}: a rank is .* at least 1"),
        ({"ranks": {"0": 0}}, ValueError, r"ranks={'0': 0}: a rank is .* at least 1"),
        ({"ranks": 0}, ValueError, "ranks=0: a rank is .* at least 1"),
        ({"ranks": {"0": 2, "1": 2}}, PlanError, r"ranks names \['1'\], no layer .* those are 0, 3, 6, 10"),
        ({"exclude": ["nothing"]} | {"ranks": 2}, ValueError, "matches no"),
        ({"ranks": 12}, TargetError, r"ranks=12 factorises nothing.*0.weight below 8.3. Ask for less"),
        ({"target_params": 0.01}, BudgetError, "fewest components alone take"),
        ({"target_params": 2}, ValueError, "target_params=2"),
    ):
        with pytest.raises(error, match=message):
            factorize(model, **options)  # type: ignore[arg-type]
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_plans_that_do_not_fit_change_nothing() -> None:
    model = factorized(network())
    plan = plan_of(model)
    state = copy.deepcopy(model.state_dict())
    for wrong, message in (
        (plan, "factorised already"),
        (PruningPlan({}, factors={"0.0": plan.factors["0"]}), "factorised already"),
        (PruningPlan({}, factors={"2": plan.factors["0"]}), "no linear layer or convolution"),
        (PruningPlan({}, factors={"x": plan.factors["0"]}), "does not have"),
    ):
        with pytest.raises(PlanError, match=message):
            wrong.apply(model)
    with pytest.raises(PlanError, match=r"of shape \(12, 27, 3, 3\), its weight has"):
        PruningPlan({}, factors={"0": type(plan.factors["0"])((12, 27, 3, 3), 2)}).apply(network())
    vars(model).pop("_lightning_prune_compact")
    with pytest.raises(PlanError, match="factorised at rank 2, found rank 4"):
        PruningPlan({}, factors={"0": type(plan.factors["0"])((12, 3, 3, 3), 2)}).undo(model)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    plan.undo(model)
    assert type(model[0]) is nn.Conv2d
