"""Gates with a threshold against autograd on the expressions that they state, and what they fold into the weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_prune.functional.shrink import rescaling, soft_threshold
from lightning_prune.masks import FixedGate, HardGate, ShrinkGate
from lightning_prune.masks.gates import MaskGate
from lightning_prune.masks.ltp import KEPT, TASK

ALPHA = 0.7


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    w, coefficients = torch.randn(2, 6, 4, 3, 3, generator=generator, dtype=torch.float64).to(dtype)
    return w, coefficients


def loss(v: Tensor, coefficients: Tensor) -> Tensor:
    return (coefficients * v).sum() + (v**3).sum() / 3


def gradient_in_v(gate: MaskGate, w: Tensor, coefficients: Tensor) -> Tensor:
    """What ``.grad`` gathers: the gradient in the weight that the network uses."""
    leaf = w.clone().requires_grad_()
    loss(gate(leaf), coefficients).backward()
    assert leaf.grad is not None
    return leaf.grad


def test_soft_threshold_and_its_gradients_are_exact() -> None:
    """Weights below it have no gradient, and dL/dα is what finite differences say."""
    w, coefficients = problem()
    tau = torch.tensor(ALPHA**2, dtype=torch.float64)
    gate = ShrinkGate(tau)
    leaf, alpha = w.clone().requires_grad_(), torch.tensor(ALPHA, dtype=torch.float64, requires_grad=True)
    expected = leaf.sign() * torch.relu(leaf.abs() - alpha)
    torch.testing.assert_close(gate(w), expected)
    by_weight, by_alpha = torch.autograd.grad(loss(expected, coefficients), (leaf, alpha))
    grad = gradient_in_v(gate, w, coefficients)
    stats = gate.step_(w, grad, count=True)
    torch.testing.assert_close(grad, by_weight)
    torch.testing.assert_close(-stats[TASK], by_alpha.to(stats.dtype))
    high, low = (loss(soft_threshold(w, alpha.detach() + e), coefficients) for e in (1e-6, -1e-6))
    assert float(-stats[TASK]) == pytest.approx(float(high - low) / 2e-6, rel=1e-6)
    assert int(stats[KEPT]) == int((w.abs() > ALPHA).sum())


@pytest.mark.parametrize("feedback", [0.3, 1.0])
def test_feedback_gives_pruned_weights_their_share(feedback: float) -> None:
    w, coefficients = problem()
    tau = torch.tensor(ALPHA**2, dtype=torch.float64)
    kept = w.abs() > ALPHA
    for gate in (ShrinkGate(tau, feedback), HardGate(tau, feedback), FixedGate(kept, feedback)):
        grad = gradient_in_v(gate, w, coefficients)
        expected = torch.where(kept, grad, feedback * grad)
        gate.step_(w, grad, count=False)
        torch.testing.assert_close(grad, expected)


def test_a_fixed_mask_is_read_live() -> None:
    w, coefficients = problem()
    kept = torch.rand(w.shape) < 0.5
    gate = FixedGate(kept)
    grad = gradient_in_v(gate, w, coefficients)
    torch.testing.assert_close(grad, coefficients + (w * kept) ** 2)  # of what the network uses: 0 where pruned
    assert int(gate.step_(w, grad, count=True)[KEPT]) == int(kept.sum())
    assert torch.equal(grad != 0, kept)
    kept.fill_(True)
    gate.expire()
    assert torch.equal(gate(w), w)


def test_rescaling_gives_each_channel_its_mass_back() -> None:
    """By hand: a channel that keeps 3 of 4 in mass; one that keeps all; one that keeps nothing, which is bounded."""
    w = torch.tensor([[3.0, -1.0], [2.0, 2.0], [0.5, -0.5]])
    factors = rescaling(w, torch.tensor(1.5)).flatten()
    torch.testing.assert_close(factors, torch.tensor([1.01 / 0.76, 1.0, 101.0]))
    v = ShrinkGate(torch.tensor(1.5**2), 1.0, rescale=True)(w)
    torch.testing.assert_close(v, torch.tensor([[1.5 * 1.01 / 0.76, 0.0], [0.5, 0.5], [0.0, 0.0]]))
    torch.testing.assert_close(rescaling(w, torch.tensor(0.0)), torch.ones(3, 1))


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", [0.2, 0.7, 1.5])  # the budget keeps more than the gate does, the same, and less
def test_what_is_kept_is_folded_and_never_zero(rescale: bool, dtype: torch.dtype, cut: float) -> None:
    w, _ = problem(dtype)
    gate = ShrinkGate(torch.tensor(ALPHA**2), rescale=rescale)
    kept = w.abs() > cut
    folded = gate.fold(w, w[kept].abs().min().float())
    assert folded.dtype == dtype
    assert bool((folded[kept] != 0).all())
    assert torch.equal(folded[kept].sign(), w[kept].sign())
    if cut >= ALPHA:
        assert torch.equal(folded[kept], gate(w)[kept])


def test_gates_that_change_no_kept_weight_fold_nothing() -> None:
    w, _ = problem()
    assert not HardGate(torch.tensor(0.5)).folds
    assert not FixedGate(w > 0).folds
    assert ShrinkGate(torch.tensor(0.5)).folds
