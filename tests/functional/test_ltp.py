"""LTP's equations against finite differences, closed forms and autograd, in float64."""

import math

import pytest
import torch

from lightning_prune.functional import ltp
from tests.ltp_equations import band, gate, hard_prune, soft_l0, soft_prune, threshold_grad, weight_grad

LAM = 0.3


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(40, generator=generator, dtype=torch.float64)
    tau, temperature = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    target = torch.randn(40, generator=generator, dtype=torch.float64)
    return w, tau, temperature, target


def loss_of(v, target):
    return ((v - target) ** 2).sum() + (v**3).sum()


def total_loss(w, tau, temperature, target):
    v = soft_prune(w, tau, temperature)
    return loss_of(v, target) + LAM * soft_l0(w, tau, temperature)


def gradient_in_v(w, tau, temperature, target):
    v = soft_prune(w, tau, temperature).detach().requires_grad_()
    (g,) = torch.autograd.grad(loss_of(v, target), v)
    return g


def central_difference(f, x, h=1e-4):
    # Fourth order: the truncation error at this step is far below 1e-8.
    return (-f(x + 2 * h) + 8 * f(x + h) - 8 * f(x - h) + f(x - 2 * h)) / (12 * h)


def test_threshold_gradient_is_exact(layer):
    w, tau, temperature, target = layer
    g = gradient_in_v(w, tau, temperature, target)
    numeric = central_difference(lambda t: total_loss(w, t, temperature, target), tau)
    assert threshold_grad(w, g, tau, temperature, LAM).item() == pytest.approx(numeric.item(), rel=1e-8)


def test_band_is_the_derivative_of_the_gate_in_the_square(layer):
    w, tau, temperature, _ = layer
    numeric = central_difference(lambda t: gate(w, t, temperature), tau)
    torch.testing.assert_close(band(w, tau, temperature), -numeric, rtol=1e-8, atol=1e-9)
    at_threshold = band(tau.sqrt(), tau, temperature)
    assert at_threshold.item() == pytest.approx(1 / (4 * temperature.item()), rel=1e-12)


def test_weight_gradient_treats_the_gate_as_constant(layer):
    """eq. 14: equal to the derivative with the gate frozen, and not to the full derivative."""
    w, tau, temperature, target = layer
    g = gradient_in_v(w, tau, temperature, target)
    frozen = gate(w, tau, temperature)
    ours = weight_grad(w, g, tau, temperature)
    for i in (0, 7, 23):

        def along(x, i=i, gate=frozen):
            moved = w.clone()
            moved[i] = x
            return loss_of(moved * gate, target)

        assert ours[i].item() == pytest.approx(central_difference(along, w[i]).item(), rel=1e-8, abs=1e-9)
    full = torch.autograd.grad(total_loss(w.requires_grad_(), tau, temperature, target), w)[0]
    assert (ours - full).abs().max() > 0.1
    # The two dropped terms make up the whole difference: 2w²s·g of the task and 2λws of the penalty.
    w = w.detach()
    s = band(w, tau, temperature)
    torch.testing.assert_close(full - ours, 2 * w**2 * s * g + LAM * 2 * w * s, rtol=1e-9, atol=1e-10)


def test_soft_prune_becomes_hard_prune_as_the_temperature_falls(layer):
    w, tau, _, _ = layer
    torch.testing.assert_close(soft_prune(w, tau, 1e-9), hard_prune(w, tau), rtol=0, atol=1e-25)
    assert soft_l0(w, tau, 1e-9).item() == pytest.approx(int(torch.count_nonzero(hard_prune(w, tau))), abs=1e-20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_denormals_and_float32_inside(dtype):
    w = torch.linspace(-1, 1, 20001).to(dtype) * 0.05
    v = soft_prune(w, 1e-3, 1e-5)
    assert v.dtype == dtype
    wide = v.float()
    assert not ((wide != 0) & (wide.abs() < torch.finfo(torch.float32).tiny)).any()
    # Half precision in, but the gate is that of float32.
    exact = w.double() * torch.sigmoid((w.double() ** 2 - 1e-3) / 1e-5)
    torch.testing.assert_close(v.double(), exact, rtol=1e-2 if dtype != torch.float32 else 2e-5, atol=1e-7)


def test_variance_of_magnitude_and_gaussian_share():
    w = torch.randn(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    variance = ltp.variance_of_magnitude(w.numel(), w.abs().sum(), w.square().sum())
    assert variance.item() == pytest.approx(w.abs().var(correction=0).item(), rel=1e-12)
    assert variance.item() == pytest.approx(1 - 2 / math.pi, rel=2e-2)  # Gaussian weights


@pytest.mark.parametrize(("numel", "expected"), [(432, 0.054), (2304, 0.010), (864, 0.027), (8640, 0.0026)])
def test_temperature_floor_puts_weights_in_the_band(numel, expected):
    floor = ltp.temperature_floor(numel)
    assert floor == pytest.approx(expected, rel=0.05)  # the values worked out for common layer sizes
    draws = torch.randn(2000, numel, generator=torch.Generator().manual_seed(2))
    temperature = floor * (1 - 2 / math.pi)
    counted = ((draws.square() - 1).abs() < 4 * temperature).sum(1).float().mean()
    assert counted.item() == pytest.approx(16, rel=0.1)


def test_temperature_floor_can_be_off_and_is_bounded():
    assert ltp.temperature_floor(100, weights_in_band=0) == 0
    assert ltp.temperature_floor(3) == 0.25


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_gaussian_threshold(sparsity):
    w = torch.randn(400_000, generator=torch.Generator().manual_seed(3))
    assert (w.square() <= ltp.gaussian_threshold(sparsity)).float().mean().item() == pytest.approx(sparsity, abs=2e-3)
