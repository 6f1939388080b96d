"""Learned Threshold Pruning, the equations (Azarian et al., arXiv 2003.00075).

One layer, weights ``w``, threshold ``τ`` and temperature ``T``, both in units of ``w²``:

    m = sigm((w² − τ) / T)         the gate                        [soft pruning]
    v = w · m                      the weight that the network uses
    L0 = Σ m                       the soft count of kept weights  [eq. 6]
    s = m (1 − m) / T              dm / d(w²), the band around the threshold

With ``g = dL/dv``, the threshold follows its exact gradient, ``dL/dτ = −Σ s (g w + λ)``; the weights follow
``g · m`` alone [eq. 14]: with the terms in ``s`` kept, weights are thrown out of the band and pruning stalls.

All functions compute in the weight's precision, in float32 at least: ``w²`` is about 1e-4 and ``T`` about 1e-8, which
half precision cannot tell apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The sigmoid's argument is bounded to ±this, where the gate is within 1e-26 of 0 or 1. Beyond, products with the gate
# would be denormal numbers, which many processors multiply a hundred times slower, and exp leaves its fast path.
GATE_RANGE = 60.0


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 if it is in half precision, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


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


def variance_of_magnitude(numel: Tensor | float, sum_abs: Tensor, sum_sq: Tensor) -> Tensor:
    """``Var(|w|)`` of a layer [eq. 15] from its weight count and the sums of ``|w|`` and ``w²``; never negative."""
    return (sum_sq / numel - (sum_abs / numel) ** 2).clamp_min(0)


def temperature_floor(numel: int, weights_in_band: float = 16.0, ceiling: float = 0.25) -> float:
    """Least ``T0`` at which about ``weights_in_band`` weights of a layer lie within ``|w² − τ| < 4T``.

    For Gaussian weights at ``τ = σ²`` that count is ``8·T0·0.363·0.242·numel`` (Var|w| = 0.363 σ², density of w²/σ² at
    1 = 0.242). Below it, the threshold gradient of a small layer is exactly 0 nearly always and τ moves in jerks.

    Args:
        numel: weights in the layer.
        weights_in_band: weights wanted in the band; 0 switches the floor off.
        ceiling: upper bound of the result, for layers of a few dozen weights.
    """
    gaussian_share = 8 * (1 - 2 / math.pi) * math.exp(-0.5) / math.sqrt(2 * math.pi)
    return min(ceiling, weights_in_band / (gaussian_share * numel))


def gaussian_threshold(sparsity: float) -> float:
    """The ``u = τ/σ²`` that prunes the share ``sparsity`` of Gaussian weights: the distance thresholds must travel."""
    normal = torch.distributions.Normal(0.0, 1.0)
    return float(normal.icdf(torch.tensor((1 + sparsity) / 2, dtype=torch.float64)) ** 2)
