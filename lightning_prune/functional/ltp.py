"""Learned Threshold Pruning, the equations (Azarian et al., arXiv 2003.00075).

One layer, weights ``w``, threshold ``τ`` and temperature ``T``, both in units of ``w²``:

    m = sigm((w² − τ) / T)         the gate                        [soft pruning]
    v = w · m                      the weight that the network uses
    L0 = Σ m                       the soft count of kept weights  [eq. 6]
    s = m (1 − m) / T              dm / d(w²), the band around the threshold

With ``g = dL/dv``, the threshold follows its exact gradient, ``dL/dτ = −Σ s (g w + λ)``; the weights follow
``g · m`` alone [eq. 14]: with the terms in ``s`` kept, weights are thrown out of the band and pruning stalls.

All is computed in the weight's precision, in float32 at least: ``w²`` is about 1e-4 and ``T`` about 1e-8, which
half precision cannot tell apart.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

# The sigmoid's argument is bounded to ±this, where the gate is within 1e-26 of 0 or 1. Beyond, products with the gate
# would be denormal numbers, which many processors multiply a hundred times slower, and exp leaves its fast path.
GATE_RANGE = 60.0
_NORMAL = NormalDist()  # of the standard library: asked at each step, 0.2 µs for torch's 130


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 if it is in half precision, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def variance_of_magnitude(numel: Tensor | float, sum_abs: Tensor, sum_sq: Tensor) -> Tensor:
    """``Var(|w|)`` of a layer [eq. 15] from its weight count and the sums of ``|w|`` and ``w²``; never negative."""
    return (sum_sq / numel - (sum_abs / numel) ** 2).clamp_min(0)


def temperature_floor(numel: int, weights_in_band: float = 16.0) -> float:
    """Least ``T0`` at which about ``weights_in_band`` weights of a layer lie within ``|w² − τ| < 4T``.

    For Gaussian weights at ``τ = σ²`` that count is ``8·T0·0.363·0.242·numel`` (Var|w| = 0.363 σ², density of w²/σ² at
    1 = 0.242). Below it, the threshold gradient of a small layer is exactly 0 nearly always and τ moves in jerks. At
    most 0.25, for layers of a few dozen weights.

    Args:
        numel: weights in the layer.
        weights_in_band: weights wanted in the band; 0 switches the floor off.
    """
    gaussian_share = 8 * (1 - 2 / math.pi) * math.exp(-0.5) / math.sqrt(2 * math.pi)
    return min(0.25, weights_in_band / (gaussian_share * numel))


def gaussian_threshold(sparsity: float) -> float:
    """The ``u = τ/σ²`` that prunes the share ``sparsity`` of Gaussian weights: the distance thresholds must travel."""
    return _NORMAL.inv_cdf((1 + sparsity) / 2) ** 2
