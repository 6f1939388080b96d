"""Schedules, budgets and the price controller: closed forms, exact counts, errors that name the layer."""

import pytest
import torch

from lightning_prune.functional import budget
from lightning_prune.functional.adam import adam_step_
from lightning_prune.functional.schedules import anneal, cubic_path, exponential_path


@pytest.mark.parametrize(
    ("shape", "progress", "expected"),
    [
        ("exponential", 0, 1.0), ("exponential", 0.5, 0.1), ("exponential", 1, 0.01), ("exponential", 7, 0.01),
        ("cosine", 0, 1.0), ("cosine", 0.5, 0.505), ("cosine", 1, 0.01), ("constant", 0, 0.01), ("constant", 1, 0.01),
    ],
)  # fmt: skip
def test_anneal(shape, progress, expected):
    assert anneal(progress, 1.0, 0.01, shape) == pytest.approx(expected)


@pytest.mark.parametrize("path", [exponential_path, cubic_path])
def test_paths_fall_from_one_to_the_target_and_hold(path):
    values = [path(p / 100, 0.1) for p in range(101)]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert values[85:] == pytest.approx([0.1] * 16)


def test_exponential_path_halves_in_equal_times():
    assert exponential_path(0.2, 0.1, hold=0) ** 2 == pytest.approx(exponential_path(0.4, 0.1, hold=0))


@pytest.mark.parametrize("keep", [6, 17, 120, 299, 300])
def test_exact_masks_keep_exactly_and_the_best(keep):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(10, 20, generator=generator), torch.rand(100, generator=generator)]
    untouched = [s.clone() for s in scores]
    masks = budget.exact_masks(scores, [3, 3], keep)
    assert sum(int(m.sum()) for m in masks) == keep
    assert all(int(m.sum()) >= 3 for m in masks)
    assert [m.shape for m in masks] == [s.shape for s in scores]
    for s, before in zip(scores, untouched, strict=True):
        assert torch.equal(s, before)
    if keep >= 17:  # above the floors, what is kept is what scores highest
        lowest_kept = min(float(s[m].min()) for s, m in zip(scores, masks, strict=True))
        assert all(float(s[~m].max()) <= lowest_kept for s, m in zip(scores, masks, strict=True) if (~m).any())


@pytest.mark.parametrize(("keep", "least"), [(90, [3, 3]), (90, [3, 60]), (63, [3, 60]), (260, [3, 60])])
def test_exact_masks_are_a_sort_in_which_what_floors_keep_comes_first(keep, least):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(n, generator=generator).round(decimals=1) / d for n, d in ((200, 1.0), (100, 2.0))]  # ties
    ranks = [s.sort(descending=True, stable=True).indices.argsort() for s in scores]
    order = [
        (rank >= floor, -score, layer, at)
        for layer, (s, r, floor) in enumerate(zip(scores, ranks, least, strict=True))
        for at, (score, rank) in enumerate(zip(s.tolist(), r.tolist(), strict=True))
    ]
    wanted = [torch.zeros(len(s), dtype=torch.bool) for s in scores]
    for _, _, layer, at in sorted(order)[:keep]:
        wanted[layer][at] = True
    assert all(map(torch.equal, budget.exact_masks(scores, least, keep), wanted))


@pytest.mark.parametrize("budget_of", [30.0, 77.5, 400.0, 1210.0])
def test_with_prices_the_highest_scores_stay_that_the_budget_pays_for(budget_of):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(n, generator=generator).round(decimals=1) for n in (100, 200, 50)]  # ties all over
    prices, least = (9.0, 1.0, 2.5), [1, 2, 3]
    masks = budget.exact_masks(scores, least, budget_of, prices=prices)
    spent = budget.cost([int(m.sum()) for m in masks], prices)
    assert budget_of - max(prices) < spent <= budget_of
    assert all(int(m.sum()) >= n for m, n in zip(masks, least, strict=True))
    above = [int(m.sum()) > n for m, n in zip(masks, least, strict=True)]  # these keep more than their floor
    cut = min(float(s[m].min()) for s, m, more in zip(scores, masks, above, strict=True) if more)
    assert all(float(s[~m].max()) <= cut for s, m in zip(scores, masks, strict=True) if (~m).any())


def test_exact_masks_break_ties_and_survive_infinite_scores():
    equal = [torch.ones(50), torch.full((50,), torch.inf)]
    masks = budget.exact_masks(equal, [1, 1], 37)
    assert [int(m.sum()) for m in masks] == [1, 36]


def test_exact_masks_name_diverged_layers():
    with pytest.raises(budget.BudgetError, match=r"\[1\] hold NaN"):
        budget.exact_masks([torch.ones(4), torch.tensor([1.0, torch.nan])], [1, 1], 3)


def test_infeasible_budget_names_the_layers_that_hold_it_back():
    with pytest.raises(budget.BudgetError, match=r"keeps 10 of 1100 .* alone keeps 22.*big.weight \(20 of 1000\)"):
        budget.check_feasible(["small.weight", "big.weight"], [100, 1000], [2, 20], 10)


def test_largest_threshold_leaves_the_floor():
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for least in (1, 10, 1000):
        [tau, half] = budget.largest_thresholds([w, w[:500]], [least, 500])
        assert int((w.square() > tau).sum()) == least
        assert bool((w[:500].square() > half).all())


@pytest.mark.parametrize(
    ("sparsity", "compression"), [(1.0, None), (-0.1, None), (None, 0.5), (None, float("inf")), (0.9, 10.0)]
)
def test_bad_targets(sparsity, compression):
    with pytest.raises(ValueError, match=r"target_"):
        budget.one_target(sparsity, compression)


def test_targets():
    assert budget.one_target(0.9, None) == 0.9
    assert budget.one_target(None, 10) == pytest.approx(0.9)
    assert budget.one_target(None, None) is None


def test_adam_equals_torch_and_leaves_inactive_entries_alone():
    torch.manual_seed(0)
    reference = torch.nn.Parameter(torch.rand(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([reference], lr=0.1, betas=(0.9, 0.98), eps=1e-12)
    value = torch.cat([reference.detach().clone(), torch.ones(1, dtype=torch.float64)])
    mean, square, count = (torch.zeros(4, dtype=torch.float64) for _ in range(3))
    active = torch.tensor([True, True, True, False])
    for _ in range(20):
        grad = torch.randn(3, dtype=torch.float64)
        reference.grad = grad
        optimizer.step()
        adam_step_(value, torch.cat([grad, torch.tensor([torch.nan])]), mean, square, count, active, lr=0.1)
    torch.testing.assert_close(value[:3], reference.detach(), rtol=1e-10, atol=1e-12)
    assert value[3] == 1
    assert count.tolist() == [20, 20, 20, 0]
