"""Hard-concrete gates: closed forms against sampling, gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_prune.functional import hard_concrete as hc

ALPHA = torch.tensor([-6.0, -2.0, -0.5, 0.0, 1.0, 3.0], dtype=torch.float64)


def uniform(n: int) -> torch.Tensor:
    """u at the middles of n equal parts of (0, 1): expectations become sums."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_the_expected_number_is_the_share_of_samples_that_are_not_zero() -> None:
    n = 200_000
    z = torch.stack([hc.sample(a.expand(n), uniform(n)) for a in ALPHA])
    torch.testing.assert_close(hc.open_probability(ALPHA), (z > 0).double().mean(1), atol=2 / n, rtol=0)
    assert float(z.min()) == 0
    assert float(z.max()) == 1
    closed = (z == 1).double().mean(1)  # P(z = 1) = sigm(log α + ln(0.1/1.1)), by the same integral
    torch.testing.assert_close(closed, torch.sigmoid(ALPHA + math.log(0.1 / 1.1)), atol=2 / n, rtol=0)


def test_gradients_against_finite_differences() -> None:
    u = torch.tensor([0.3, 0.6, 0.45, 0.55, 0.4, 0.2], dtype=torch.float64)
    alpha = ALPHA.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: hc.sample(a, u), alpha)
    assert torch.autograd.gradcheck(hc.open_probability, alpha)
    assert torch.autograd.gradcheck(hc.soft_gates, alpha)


def test_evaluation_sets_as_many_to_zero_as_are_expected_to_be() -> None:
    z = hc.evaluation_gates(ALPHA)
    zeros = round(float(len(ALPHA) - hc.open_probability(ALPHA).sum()))
    assert zeros == 2  # by hand: 1 − 0.0266, 1 − 0.598, 1 − 0.848, ... add up to 1.75
    assert (z == 0).tolist() == [True, True, False, False, False, False]
    torch.testing.assert_close(z[2:], torch.sigmoid(0.8 * ALPHA[2:]))
    assert torch.equal(hc.evaluation_gates(torch.zeros(4)) > 0, torch.ones(4, dtype=torch.bool))


def test_the_price_is_the_slope_of_the_lagrangian() -> None:
    first, second, target = torch.tensor(-0.7).double(), torch.tensor(1.3).double(), 0.4
    q = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    (first * (q - target) + second * (q - target) ** 2).backward()
    torch.testing.assert_close(hc.price(first, second, q.detach() - target), q.grad)


def test_the_target_is_ramped_from_where_the_gates_begin() -> None:
    assert [hc.ramp(p, -1.0, 0.8, 0.2) for p in (0.0, 0.4, 0.8, 1.0)] == pytest.approx([-1.0, -0.1, 0.8, 0.8])
    assert hc.start_log_alpha(0.5) == 0
    assert torch.sigmoid(torch.tensor(hc.start_log_alpha(0.05))) == pytest.approx(0.95)
