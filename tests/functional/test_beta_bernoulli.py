"""Beta-Bernoulli masks against closed forms, Monte Carlo and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_prune.functional.beta_bernoulli import (
    divergence,
    kumaraswamy_mean,
    kumaraswamy_quantile,
    relaxed_bernoulli,
)

A = torch.tensor([0.5, 2.0, 5.0], dtype=torch.float64)
B = torch.tensor([0.7, 1.0, 3.0], dtype=torch.float64)


def log_density(x: Tensor) -> Tensor:
    return A.log() + B.log() + (A - 1) * x.log() + (B - 1) * torch.log1p(-(x**A))


def uniform(n: int) -> Tensor:
    return torch.rand(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_quantile_inverts_the_distribution() -> None:
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)[:, None]
    x = kumaraswamy_quantile(u, A, B)
    torch.testing.assert_close(1 - (1 - x**A) ** B, u.expand_as(x))
    small = kumaraswamy_quantile(torch.tensor([1e-12], dtype=torch.float64), A, B)  # where 1 − u is 1 in float32
    torch.testing.assert_close(small, (1e-12 / B) ** (1 / A), rtol=1e-6, atol=0.0)


def test_the_mean_is_that_of_samples_and_closed_forms() -> None:
    samples = kumaraswamy_quantile(uniform(200_000), A, B)
    torch.testing.assert_close(samples.mean(0), kumaraswamy_mean(A, B), rtol=5e-3, atol=0.0)
    ones = torch.ones_like(A)
    torch.testing.assert_close(kumaraswamy_mean(A, ones), A / (A + 1))  # x^A is uniform
    torch.testing.assert_close(kumaraswamy_mean(ones, B), 1 / (B + 1))  # Beta(1, b)


@pytest.mark.parametrize("alpha", [1e-2, 1.0])
def test_the_divergence_is_that_of_samples(alpha: float) -> None:
    x = kumaraswamy_quantile(uniform(400_000), A, B)
    prior = math.log(alpha) + (alpha - 1) * x.log()
    torch.testing.assert_close((log_density(x) - prior).mean(0), divergence(A, B, alpha), rtol=1e-2, atol=2e-3)


def test_the_divergence_of_equal_distributions_is_zero_and_its_gradient_is_right() -> None:
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(divergence(2.5 * one, one, 2.5), 0 * one)  # Kumaraswamy(α, 1) is Beta(α, 1)
    leaves = A.clone().requires_grad_(), B.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: divergence(a, b, 1e-2), leaves)
    assert torch.autograd.gradcheck(kumaraswamy_mean, leaves)
    assert torch.autograd.gradcheck(lambda a, b: kumaraswamy_quantile(uniform(4), a, b), leaves)


def test_relaxed_draws_are_ones_with_their_probability() -> None:
    p = torch.tensor([0.1, 0.5, 0.95], dtype=torch.float64)
    draws = relaxed_bernoulli(uniform(100_000), p, 1e-3)
    assert bool(((draws < 1e-3) | (draws > 1 - 1e-3)).double().mean() > 0.99)
    torch.testing.assert_close(draws.mean(0), p, rtol=0.0, atol=5e-3)
    warm = relaxed_bernoulli(torch.tensor([0.5]), torch.tensor([0.8]), 0.5)
    torch.testing.assert_close(warm, torch.sigmoid(torch.tensor([math.log(4) / 0.5])), rtol=1e-5, atol=0.0)
