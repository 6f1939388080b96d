"""LTP's equations as expressions that autograd can differentiate, for what `lightning_prune` computes by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.functional.ltp import GATE_RANGE, at_least_float32

__all__ = ["band", "gate", "hard_prune", "soft_l0", "soft_prune", "threshold_grad", "weight_grad"]


def gate(w: Tensor, tau: Tensor | float, temperature: Tensor | float) -> Tensor:
    """The soft gate ``m = sigm((w² − τ)/T)``, same shape as ``w``, in float32 or better."""
    w = at_least_float32(w)
    return torch.sigmoid(((w * w - tau) / temperature).clamp(-GATE_RANGE, GATE_RANGE))


def soft_prune(w: Tensor, tau: Tensor | float, temperature: Tensor | float) -> Tensor:
    """The soft-pruned weight ``v = w·m``; shape and dtype of ``w``. Differentiable in ``w``, ``τ`` and ``T``."""
    return (at_least_float32(w) * gate(w, tau, temperature)).to(w.dtype)


def hard_prune(w: Tensor, tau: Tensor | float) -> Tensor:
    """The hard-pruned weight: ``w`` where ``w² > τ``, else 0; shape and dtype of ``w``."""
    return torch.where(at_least_float32(w).square() > tau, w, torch.zeros_like(w))


def soft_l0(w: Tensor, tau: Tensor | float, temperature: Tensor | float) -> Tensor:
    """Soft number of kept weights ``Σ m`` [eq. 6]; a scalar."""
    return gate(w, tau, temperature).sum()


def band(w: Tensor, tau: Tensor | float, temperature: Tensor | float) -> Tensor:
    """The transition kernel ``s = m(1 − m)/T``, in 1/w² units; shape of ``w``. Highest, ``1/(4T)``, at ``w² = τ``."""
    m = gate(w, tau, temperature)
    return m * (1 - m) / temperature


def threshold_grad(
    w: Tensor, grad: Tensor, tau: Tensor | float, temperature: Tensor | float, lam: Tensor | float
) -> Tensor:
    """Exact gradient of ``L + λ·L0`` in the threshold, ``−Σ s (g w + λ)``; a scalar.

    Args:
        w: weights, any shape.
        grad: ``g = dL/dv``, the loss gradient in the *effective* weight; shape of ``w``.
        tau: threshold, w² units.
        temperature: temperature, w² units, > 0.
        lam: price of one kept weight, in units of the loss.
    """
    return -(band(w, tau, temperature) * (at_least_float32(grad) * at_least_float32(w) + lam)).sum()


def weight_grad(w: Tensor, grad: Tensor, tau: Tensor | float, temperature: Tensor | float) -> Tensor:
    """The weight gradient that LTP uses, ``g · m`` [eq. 14: the gate is a constant in w]; shape of ``w``."""
    return at_least_float32(grad) * gate(w, tau, temperature)
