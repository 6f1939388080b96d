"""Mutual regularization against finite differences and closed forms, in float64."""

import math

import pytest
import torch

from lightning_prune.functional.mrts import (
    BinnedEntropy,
    ClassInformation,
    GaussianChannel,
    check_polarises,
    fixed_points,
    proximal_step,
)

GAMMA = torch.tensor([0.02, 0.11, 0.3, 0.5, 1.0, 2.0], dtype=torch.float64)
ESTIMATORS = {
    "gaussian": GaussianChannel(0.25),
    "binned": BinnedEntropy(1.0),
    "labels": ClassInformation(
        torch.tensor([1.0, 0.5, 2.0, 1.0, 0.3, 1.0], dtype=torch.float64),
        torch.tensor([0.0, 0.2, 0.5, 1.0, 0.1, 0.9], dtype=torch.float64),
        0.25,
    ),
}


def penalty(gamma, tau, information):
    """eq. 4"""
    return (tau * gamma.abs() - information.value(gamma.abs()).abs()).sum()


def penalty_grad(gamma, tau, information):
    return gamma.sign() * (tau - information.slope(gamma.abs()))


@pytest.fixture(params=ESTIMATORS)
def information(request):
    return ESTIMATORS[request.param]


def test_slope_is_the_derivative_of_the_value(information):
    h = 1e-4
    values = [information.value(GAMMA + k * h) for k in (-2, -1, 1, 2)]
    numeric = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    torch.testing.assert_close(information.slope(GAMMA), numeric, rtol=1e-8, atol=1e-9)


def test_information_is_zero_at_zero_and_never_falls(information):
    assert information.value(torch.zeros(6, dtype=torch.float64)).abs().max() < 1e-12
    assert bool((information.slope(GAMMA) >= -1e-12).all())
    assert bool(information.slope(torch.full((6,), 1e-9, dtype=torch.float64)).isfinite().all())


def test_penalty_gradient_against_finite_differences(information):
    gamma, h = GAMMA * torch.tensor([1, -1, 1, 1, -1, 1]), 1e-4
    grad = penalty_grad(gamma, 1.5, information)
    for i, unit in enumerate(torch.eye(6, dtype=torch.float64)):
        values = [penalty(gamma + k * h * unit, 1.5, information).item() for k in (-2, -1, 1, 2)]
        numeric = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
        assert grad[i].item() == pytest.approx(numeric, rel=1e-7, abs=1e-8)


def test_gaussian_channel_in_closed_form():
    channel = GaussianChannel(0.25)
    assert channel.value(torch.tensor(0.25)).item() == pytest.approx(0.5 * math.log(2))
    labels = ClassInformation(torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64), 0.25)
    torch.testing.assert_close(labels.value(GAMMA), channel.value(GAMMA))


def test_binned_entropy_follows_the_channel_of_equal_noise_and_sampling():
    width = 1.0
    channel = GaussianChannel(width / math.sqrt(2 * math.pi * math.e))
    wide = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(BinnedEntropy(width).value(wide), channel.value(wide), rtol=0.02, atol=0)
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.bincount((z * 0.7 / width).round().long() + 20).double() / len(z)
    sampled = -torch.special.xlogy(p, p).sum().item()
    assert BinnedEntropy(width).value(torch.tensor([0.7], dtype=torch.float64)).item() == pytest.approx(
        sampled, rel=5e-3
    )


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.25, 0.33])
def test_fixed_points_in_closed_form(noise):
    tau = 1.5
    root = math.sqrt(1 - 4 * tau**2 * noise**2)
    expected = ((1 - root) / (2 * tau), (1 + root) / (2 * tau))
    assert fixed_points(tau, GaussianChannel(noise)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("information", [GaussianChannel(0.34), GaussianChannel(1.0), BinnedEntropy(3.0)])
def test_an_estimator_too_flat_to_polarise_is_refused_with_the_reason(information):
    assert fixed_points(1.5, information) is None
    with pytest.raises(ValueError, match=r"does not polarise with tau=1.5.*Lower"):
        check_polarises(1.5, information)


def test_proximal_step_of_l1_is_soft_thresholding_with_exact_zeros():
    got = proximal_step(GAMMA, 0.1, 1.5, None, math.inf)
    torch.testing.assert_close(got, (GAMMA - 0.15).clamp_min(0))
    assert (got == 0).sum() == 2


def test_small_proximal_steps_follow_the_gradient(information):
    step = 1e-6
    moved = (proximal_step(GAMMA, step, 1.5, information, math.inf) - GAMMA) / step
    torch.testing.assert_close(moved, -penalty_grad(GAMMA, 1.5, information), rtol=1e-6, atol=1e-8)


def test_repeated_steps_polarise_around_the_repeller_and_respect_the_ceiling():
    channel = GaussianChannel(0.25)
    low, high = check_polarises(1.5, channel)
    gamma = torch.linspace(0.3 * low, 3 * low, 41, dtype=torch.float64)
    start = gamma.clone()
    for _ in range(4000):
        gamma = proximal_step(gamma, 1e-3, 1.5, channel, 1.0)
    assert bool((gamma[start < 0.99 * low] == 0).all())
    torch.testing.assert_close(
        gamma[start > 1.01 * low], torch.full_like(gamma[start > 1.01 * low], high), rtol=1e-3, atol=0
    )
    assert proximal_step(start, 1.0, 0.0, channel, 0.2).max() == pytest.approx(0.2)
