"""Hard-concrete gates and the augmented Lagrangian that brings their number to a target.

Louizos et al. 2018, arXiv 1712.01312, with the constants and the evaluation mask of FLOP (Wang et al., EMNLP 2020,
arXiv 1910.04732, and its official code).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEFT, RIGHT = -0.1, 1.1  # the stretched interval
BETA = 1.0  # temperature
EPS = 1e-6  # noise stays this far from 0 and 1
_EVALUATED = 0.8  # factor on log α in the evaluation mask


def start_log_alpha(drop: float) -> float:
    """log α of a gate whose concrete variable is below a half with this probability: ``ln((1 − p)/p)``."""
    return math.log((1 - drop) / drop)


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates z in [0, 1], exact zeros and ones included: ``clamp(1.2·sigm((ln u − ln(1 − u) + log α)/β) − 0.1)``.

    Args:
        log_alpha: [gates].
        uniform: u, noise in (0, 1), of the same shape.
    """
    u = uniform.clamp(EPS, 1 - EPS)
    s = torch.sigmoid((u.log() - (-u).log1p() + log_alpha) / BETA)
    return (s * (RIGHT - LEFT) + LEFT).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(z ≠ 0) of each gate, ``sigm(log α − β·ln(0.1/1.1))``; their sum is E‖z‖₀."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LEFT / RIGHT))


def soft_gates(log_alpha: Tensor) -> Tensor:
    """The gates of evaluation before any is set to zero, ``sigm(0.8·log α/β)``."""
    return torch.sigmoid(_EVALUATED * log_alpha / BETA)


def evaluation_gates(log_alpha: Tensor) -> Tensor:
    """The gates of evaluation: as many of the smallest as are expected to be zero are zero, the others stay soft."""
    gates = soft_gates(log_alpha)
    zeros = (len(gates) - open_probability(log_alpha).sum()).round()
    return torch.where(gates.argsort(stable=True).argsort() < zeros, 0.0, gates)


def price(first: Tensor, second: Tensor, gap: Tensor) -> Tensor:
    """dL/dq of the Lagrangian ``L = λ₁(q − t) + λ₂(q − t)²`` in the pruned share q; gap: q − t."""
    return first + 2 * second * gap


def ramp(progress: float, start: float, target: float, hold: float) -> float:
    """The target on its way: linear from what the gates begin with, reached at ``1 − hold``, then level."""
    return start + (target - start) * min(max(progress, 0.0) / (1.0 - hold), 1.0)
