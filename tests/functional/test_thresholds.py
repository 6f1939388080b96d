"""Threshold selection against the rules stated literally, and what they leave open."""

import math

import pytest
import torch

from lightning_prune.functional.thresholds import RULES, boundary, check_delta, costs, gap, worths

DELTA = 1e-3


def keep_by_delta(gamma, rule, delta):
    """What a rule keeps at a given δ; at least the largest factor always stays."""
    keep = costs(gamma, rule) >= math.log(delta)
    if not keep.any():
        keep[gamma.argmax()] = True
    return keep


def literal_eq_11(gamma, delta):
    """Sort ascending; the threshold is the first that satisfies S_N < S + ln δ ≤ S_N + γ_t; what is below it goes."""
    ordered = gamma.sort().values
    total, below = ordered.sum().item(), 0.0
    for g in ordered.tolist():
        if below < total + math.log(delta) <= below + g:
            return gamma >= g
        below += g
    return torch.ones_like(gamma, dtype=torch.bool)


def literal_share(gamma, delta, power):
    """Drop from the smallest on while what is dropped adds up to at most δ of the whole."""
    order = gamma.argsort()
    keep, total, gone = torch.ones_like(gamma, dtype=torch.bool), (gamma**power).sum(), 0.0
    for i in order.tolist():
        gone += (gamma[i] ** power).item()
        if gone >= delta * total:
            break
        keep[i] = False
    return keep


def layer(n, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, generator=generator, dtype=torch.float64)
    if kind == "plain":
        return (0.5 + 0.1 * normal).abs()
    polar = 0.45 + 0.1 * normal
    polar[: n // 2] = (0.002 * normal[: n // 2]).abs()
    return polar.abs()


@pytest.mark.parametrize("kind", ["plain", "polar"])
@pytest.mark.parametrize("n", [16, 64, 512])
def test_rules_equal_their_statement(n, kind):
    gamma = layer(n, kind)
    assert torch.equal(keep_by_delta(gamma, "exp", DELTA), literal_eq_11(gamma, DELTA))
    assert torch.equal(keep_by_delta(gamma, "css", DELTA), literal_share(gamma, DELTA, 2))
    assert torch.equal(keep_by_delta(gamma, "mass", DELTA), literal_share(gamma, DELTA, 1))
    assert torch.equal(keep_by_delta(gamma, "global", 0.3), gamma >= 0.3)


def test_css_finds_the_zero_mode_whatever_the_scale_and_the_printed_rule_does_not():
    gamma = layer(512, "polar")
    for scale in (0.01, 1.0, 100.0):
        kept = keep_by_delta(gamma * scale, "css", DELTA)
        assert not kept[gamma < 0.02].any()
        assert int(kept.sum()) >= 254
    kept = [int(keep_by_delta(gamma * scale, "exp", DELTA).sum()) for scale in (0.01, 1.0, 100.0)]
    assert kept[0] == 512
    assert kept[1] < 20
    assert kept[2] == 1


def test_printed_rule_is_computed_without_exponentials():
    gamma = torch.full((4096,), 1e4) + torch.arange(4096)  # e^(4e7) overflows every float
    assert costs(gamma, "exp").isfinite().all()
    assert int(keep_by_delta(gamma, "exp", DELTA).sum()) == 1


@pytest.mark.parametrize("rule", RULES)
def test_exact_zeros_always_go_and_something_always_stays(rule):
    gamma = torch.tensor([0.0, 0.0, 0.3, 0.4])  # far below the printed rule's scale of 6.9
    assert costs(gamma, rule)[:2].tolist() == [-math.inf] * 2
    assert keep_by_delta(gamma, rule, DELTA).tolist() == [False, False, True, True]
    assert int(keep_by_delta(torch.zeros(8), rule, DELTA).sum()) == 1


@pytest.mark.parametrize("rule", ["css", "mass", "exp"])
def test_equal_factors_go_together_and_an_equal_layer_stays_whole(rule):
    gamma = torch.tensor([0.1, 0.5, 0.1, 0.5, 0.1])
    cost = costs(gamma, rule)
    assert cost[0] == cost[2] == cost[4] < cost[1] == cost[3]
    assert bool(keep_by_delta(torch.full((512,), 1.0), rule, DELTA).all())


@pytest.mark.parametrize("rule", RULES)
def test_costs_grow_with_the_factor_in_float64(rule):
    gamma = layer(64, "plain")
    cost = costs(gamma.float(), rule)
    assert cost.dtype == torch.float64
    assert bool((cost[gamma.argsort()].diff() > 0).all())


def test_boundary_and_gap():
    gamma = torch.tensor([0.0, 0.1, 0.5, 0.7])
    keep = torch.tensor([False, False, True, True])
    assert boundary(gamma, keep) == pytest.approx(0.3)
    assert gap(gamma, keep) == pytest.approx(0.4 / 0.6)
    assert boundary(gamma, torch.ones(4, dtype=torch.bool)) == 0
    assert math.isnan(gap(gamma, torch.ones(4, dtype=torch.bool)))
    assert gap(gamma, torch.tensor([True, True, True, False])) < 0  # the order is broken


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="delta=2"):
        check_delta(2, "css")
    with pytest.raises(ValueError, match="rule='otsu'"):
        costs(torch.ones(4), "otsu")
    with pytest.raises(ValueError, match="not negative"):
        costs(torch.tensor([-1.0, 1.0]), "css")


@pytest.mark.parametrize("rule", RULES)
def test_worths_add_up_and_rank_as_the_costs_do(rule):
    values = torch.tensor([0.3, 0.0, 2.0, 0.7, 0.1])
    worth = worths(values, rule)
    assert torch.equal(worth.argsort(stable=True), costs(values, rule).argsort(stable=True))
    if rule in ("css", "mass"):  # shares of the layer, whose running sum is the cost
        assert float(worth.sum()) == pytest.approx(1.0)
        assert torch.allclose(worth.sort().values.cumsum(0)[1:].log(), costs(values, rule).sort().values[1:])
