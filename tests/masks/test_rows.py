"""Outputs whose weights are nearly all pruned: none runs off."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_prune.masks.gates import HardGate, SoftGate
from lightning_prune.masks.rows import limit_rows_


def test_no_row_is_above_three_times_the_upper_quartile_of_those_that_are_not_zero() -> None:
    sizes = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1000.0])  # the third largest of eight: 6
    grad = sizes.view(-1, 1, 1).repeat(1, 4, 4) / 4
    limit_rows_([grad])
    assert grad.flatten(1).norm(dim=1).tolist() == pytest.approx([0, 0, 1, 2, 3, 4, 5, 6, 7, 18])


def test_the_scale_of_the_loss_does_not_count() -> None:
    grad = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 16).view(-1, 1)
    small, large = grad.clone(), grad * 1024
    limit_rows_([small])
    limit_rows_([large])
    assert torch.equal(small * 1024, large)
    assert not torch.equal(small, grad)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_behind_a_norm_no_fading_output_jumps(kind: str) -> None:
    """Seen on MobileNetV2 at 20x: straight-through gradients of dying outputs grew until the training diverged."""
    torch.manual_seed(0)
    w = torch.randn(8, 64, dtype=torch.float64)
    w[0] = 0.3  # below the threshold, but for one
    w[0, 0] = 0.33
    x, goal = torch.randn(256, 64, dtype=torch.float64), torch.randn(256, 8, dtype=torch.float64)
    tau, temperature = w.new_tensor(0.315**2), w.new_tensor(1e-5)
    gates = {"soft": SoftGate(1 / temperature, -tau / temperature, feedback=1.0), "hard": HardGate(tau, 1.0)}

    def gradient(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.detach().requires_grad_()
        (grad,) = torch.autograd.grad((F.batch_norm(x @ weight.T, None, None, training=True) * goal).sum(), weight)
        return grad

    param = torch.nn.Parameter(w.clone())
    masked = gates[kind](param).detach().clone()
    dense, raw = gradient(w), gradient(masked)
    fed = raw.clone()
    gates[kind].step_(param.detach(), fed, False)
    limit_rows_([fed])
    before, after, usual = (float(g[0].norm() / v[0].norm()) for g, v in ((raw, masked), (fed, masked), (dense, w)))
    assert before > 30 * usual
    assert after < before / 3
    assert torch.equal(fed[1:], raw[1:])
