"""Outputs whose weights are nearly all pruned: no step of theirs is larger than a dense one would be."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_prune.masks.gates import HardGate, SoftGate
from lightning_prune.masks.rows import LEAST, slow_fading_rows_


def test_gradients_shrink_with_the_energy_below_a_tenth() -> None:
    w = torch.ones(4, 100)
    masked = w.clone()
    masked[1, 10:] = 0  # a tenth of the energy
    masked[2, 5:] = 0
    masked[3] = 0
    grad = torch.ones(4, 100)
    slow_fading_rows_(w, masked, grad)
    assert grad[:, 0].tolist() == pytest.approx([1.0, 1.0, 0.05 / LEAST, 0.0])
    assert (grad == grad[:, :1]).all()


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
    before, after, usual = (float(g[0].norm() / v[0].norm()) for g, v in ((raw, masked), (fed, masked), (dense, w)))
    assert before > 30 * usual
    assert after < 15 * usual
    assert torch.equal(fed[1:], raw[1:])
