"""The knapsack against all combinations, and the bound that it states."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_prune.channels.latency.knapsack import choose
from lightning_prune.errors import BudgetError


def brute(worth: list[torch.Tensor], cost: list[torch.Tensor], budget: float) -> float:
    best = -torch.inf
    for picks in itertools.product(*(range(len(w)) for w in worth)):
        if sum(float(c[i]) for c, i in zip(cost, picks, strict=True)) <= budget + 1e-9:
            best = max(best, sum(float(w[i]) for w, i in zip(worth, picks, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_best_of_all_combinations(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    worth = [torch.rand(5, generator=g, dtype=torch.float64) for _ in range(4)]
    whole = [torch.randint(1, 40, (5,), generator=g).double() for _ in range(4)]  # not monotone, as times are not
    least = int(sum(c.min() for c in whole))
    for budget in (least, least + 17, least + 60):
        steps = budget - least
        picks = choose(worth, whole, budget, bins=max(steps, 1))
        assert sum(float(c[i]) for c, i in zip(whole, picks, strict=True)) <= budget
        found = sum(float(w[i]) for w, i in zip(worth, picks, strict=True))
        assert found == pytest.approx(brute(worth, whole, budget), abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_of_real_costs_it_stays_within_and_meets_its_bound(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    worth = [torch.rand(6, generator=g, dtype=torch.float64) for _ in range(4)]
    cost = [torch.rand(6, generator=g, dtype=torch.float64) for _ in range(4)]
    least, bins = float(sum(c.min() for c in cost)), 50
    budget = least + 0.7
    picks = choose(worth, cost, budget, bins)
    assert sum(float(c[i]) for c, i in zip(cost, picks, strict=True)) <= budget + 1e-9
    found = sum(float(w[i]) for w, i in zip(worth, picks, strict=True))
    assert brute(worth, cost, budget - 0.7 * 4 / bins) <= found <= brute(worth, cost, budget) + 1e-12


def test_what_cannot_be_met_is_an_error() -> None:
    cost = [torch.tensor([2.0, 3.0])] * 2
    assert choose([torch.tensor([0.0, 1.0])] * 2, cost, 4.0) == [0, 0]
    with pytest.raises(BudgetError, match="cost 4 together, more than the budget of 3"):
        choose([torch.tensor([0.0, 1.0])] * 2, cost, 3.0)
