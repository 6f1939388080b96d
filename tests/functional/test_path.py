"""The path to a budget: prior, price and correction against closed forms."""

from __future__ import annotations

import pytest
import torch

from lightning_prune.functional import path
from tests import ltp_equations as ltp


def test_the_prior_follows_the_fans_and_is_level_over_all_weights() -> None:
    """A depthwise layer, a wide one, and a classifier, wide on one side only."""
    numels = [9 * 8, 576 * 64, 640]
    prior = path.fan_prior([(9, 9), (576, 576), (64, 10)], numels)
    assert (prior[1] - prior[0]).exp() == pytest.approx(64**0.75)
    assert (prior[2] - prior[0]).exp() == pytest.approx((640 / 74 / 4.5) ** 0.75)
    assert sum(n * float(p) for n, p in zip(numels, prior, strict=True)) == pytest.approx(0, abs=1e-2)


def test_the_prior_leans_to_one_magnitude_by_a_factor_of_eight_at_most() -> None:
    """Near one magnitude it is that; a layer that is scaled moves no other but by the mean, and itself by no more."""
    numels, squares = [100, 100, 200], torch.tensor([1.0, 0.6, 0.8])
    fans = path.fan_prior([(9, 9)] * 3, numels)
    near = path.lean_to_magnitude(fans, squares, numels)
    assert (near - near[0]).tolist() == pytest.approx((-squares.log()).tolist(), abs=1e-6)
    assert float((near * torch.tensor(numels)).sum()) == pytest.approx(0, abs=1e-4)
    small = path.lean_to_magnitude(fans, squares * torch.tensor([1.0, 1e-9, 1e9]), numels)
    smaller = path.lean_to_magnitude(fans, squares * torch.tensor([1.0, 1e-11, 1e11]), numels)
    assert float(small[1] - small[2]) == pytest.approx(4.2, abs=1e-6)
    assert torch.allclose(small[1:] - small[1], smaller[1:] - smaller[1], atol=1e-6)
    assert path.lean_to_magnitude(fans, torch.zeros(3), numels).isfinite().all()


def test_at_the_balanced_price_a_common_move_of_all_thresholds_is_free() -> None:
    """The derivative of loss + λ·L0 in log c, which is the sum over layers of τ times their threshold's gradient."""
    generator = torch.Generator().manual_seed(0)
    normal = [torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (300, 2000)]
    layers = [(scale * w, g) for (w, g), scale in zip(normal, (1.0, 0.1), strict=True)]
    taus = [0.8, 0.004]
    bands = [ltp.band(w, tau, tau / 10) for (w, _), tau in zip(layers, taus, strict=True)]
    task = torch.stack([tau * (s * g * w).sum() for (w, g), tau, s in zip(layers, taus, bands, strict=True)])
    band = torch.stack([tau * s.sum() for tau, s in zip(taus, bands, strict=True)])
    price = path.balanced_price(task, band)
    pairs = zip(layers, taus, strict=True)
    total = sum(tau * ltp.threshold_grad(w, g, tau, tau / 10, price) for (w, g), tau in pairs)
    assert float(total) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("goal", [0.999, 0.9, 0.5, 0.1, 0.02, 0.005])
def test_normal_weights_need_no_correction(goal: float) -> None:
    w = torch.randn(400_000, generator=torch.Generator().manual_seed(1))
    u = path.common_factor(goal, torch.zeros(())).exp()
    assert float((w.square() > u).float().mean()) == pytest.approx(goal, rel=0.05)


@pytest.mark.parametrize("goal", [0.9, 0.5, 0.1, 0.02])
@pytest.mark.parametrize("degrees", [2.5, 30.0])  # tails heavier than normal, and about normal
def test_the_correction_finds_the_goal_for_other_weights(goal: float, degrees: float) -> None:
    torch.manual_seed(0)
    w = torch.distributions.StudentT(degrees).sample((200_000,))
    w = w / w.square().mean().sqrt()
    correction = torch.zeros(())
    for _ in range(40):
        kept = (w.square() > path.common_factor(goal, correction).exp()).float().mean()
        correction = path.corrected(correction, kept, goal)
    assert float(kept) == pytest.approx(goal, rel=0.02)


def test_prior_shares_meet_the_goal_and_are_those_of_normal_weights() -> None:
    numels = [9 * 32, 96 * 32, 400_000]
    log_r = path.fan_prior([(9, 32), (96, 32), (800, 500)], numels)
    u, shares = path.prior_shares(log_r, numels, 0.05)
    assert float((shares * torch.tensor(numels)).sum()) / sum(numels) == pytest.approx(0.05, rel=1e-6)
    assert ((u / u[0]).log() - (log_r - log_r[0])).abs().max() < 1e-5
    w = torch.randn(400_000, generator=torch.Generator().manual_seed(1))
    for threshold, share in zip(u.tolist(), shares.tolist(), strict=True):
        assert float((w.square() > threshold).double().mean()) == pytest.approx(share, rel=0.05)


def test_prior_scales_keep_the_prior_share_whatever_the_weights_are() -> None:
    """σ² for normal weights; for heavy tails far less, as few of them are above u·σ²."""
    torch.manual_seed(0)
    normal, heavy = torch.randn(300, 300), torch.distributions.StudentT(2.2).sample((300, 300))
    log_r = torch.tensor([0.3, -0.3])
    scales = path.prior_scales(log_r, [normal, heavy], [1, 1], [90_000, 90_000], 0.1)
    u, shares = path.prior_shares(log_r, [90_000, 90_000], 0.1)
    assert float(scales[0]) == pytest.approx(1.0, rel=0.03)
    assert float(scales[1]) < 0.5 * float(heavy.square().mean())
    for w, scale, threshold, share in zip((normal, heavy), scales, u, shares, strict=True):
        assert float((w.square() > scale * threshold).double().mean()) == pytest.approx(float(share), rel=1e-3)
