"""Straight-through steps, draws without replacement, interpolation of channels, and the price of MACs."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from lightning_prune.functional.gating import flops_loss, gumbel_pairs, interpolate_channels, straight_through


def test_a_step_is_exact_and_has_the_sigmoids_gradient() -> None:
    s = torch.linspace(-4, 4, 101).requires_grad_()
    step = straight_through(s)
    assert torch.equal(step, (s > 0).float())
    step.sum().backward()
    p = s.detach().sigmoid()
    torch.testing.assert_close(s.grad, p * (1 - p))


def test_pairs_are_drawn_without_replacement_by_the_softmax() -> None:
    """P(i, then j) = p_i·p_j/(1 − p_i): what the two largest of logits with Gumbel noise are."""
    logits = torch.tensor([0.5, -0.3, 1.0])
    n = 40_000
    u = torch.rand(n, 3, generator=torch.Generator().manual_seed(0))
    chosen, weights = gumbel_pairs(logits.expand(n, 3), u, 0.7)
    p = logits.softmax(0)
    for i, j in itertools.permutations(range(3), 2):
        share = float(((chosen[:, 0] == i) & (chosen[:, 1] == j)).double().mean())
        assert abs(share - float(p[i] * p[j] / (1 - p[i]))) < 0.01
    torch.testing.assert_close(weights.sum(1), torch.ones(n))
    assert bool((weights[:, 0] >= weights[:, 1]).all())


def test_weights_are_the_two_of_the_softmax_made_to_sum_to_one() -> None:
    logits, u = torch.tensor([[0.2, 1.0, -1.0]], dtype=torch.float64), torch.tensor([[0.3, 0.4, 0.9]]).double()
    leaf = logits.clone().requires_grad_()
    chosen, weights = gumbel_pairs(leaf, u, 0.5)
    noisy = ((logits.log_softmax(1) - torch.log(-torch.log(u))) / 0.5).softmax(1)
    torch.testing.assert_close(weights.detach(), noisy.gather(1, chosen) / noisy.gather(1, chosen).sum())
    assert torch.autograd.gradcheck(lambda a: gumbel_pairs(a, u, 0.5)[1], (leaf,))


def pooled(x: Tensor, width: int) -> Tensor:
    """By the definition: output i is the mean of inputs ⌊i·C/width⌋ to ⌈(i+1)·C/width⌉."""
    size = x.shape[1]
    parts = [x[:, i * size // width : -(-(i + 1) * size // width)].mean(1) for i in range(width)]
    return torch.stack(parts, 1)


def test_channels_are_interpolated_as_defined() -> None:
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    for width in (1, 3, 5, 8):
        torch.testing.assert_close(interpolate_channels(x, width), pooled(x, width))
    assert torch.equal(interpolate_channels(x, 5), x)


def test_the_price_of_macs() -> None:
    expected = torch.tensor(0.4, requires_grad=True)
    for share, wanted in ((0.6, math.log(0.4)), (0.48, 0.0), (0.3, -math.log(0.4))):
        torch.testing.assert_close(flops_loss(expected, share, 0.5), torch.tensor(wanted))
    flops_loss(expected, 0.48, 0.5).backward()
    assert float(expected.grad) == 0
