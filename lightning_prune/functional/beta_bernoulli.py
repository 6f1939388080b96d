"""Beta-Bernoulli masks with a Kumaraswamy posterior: Lee et al. (1805.10896), as ANP-VS uses them (1908.04355).

A channel's keep probability π has the posterior q(π) = Kumaraswamy(a, b) and the prior Beta(α, 1), which for a small α
lies at 0: a channel that the loss does not hold is pruned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EULER = 0.5772156649015329


def kumaraswamy_quantile(u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The u-quantile of Kumaraswamy(a, b), ``(1 − (1 − u)^{1/b})^{1/a}``: samples where u is uniform.

    Args:
        u: in (0, 1), broadcast with a and b.
        a, b: shape parameters > 0.
    """
    inner = -torch.expm1(torch.log1p(-u) / b)  # 1 − (1 − u)^{1/b}, exact for small u
    return torch.exp(inner.clamp_min(torch.finfo(u.dtype).tiny).log() / a)


def kumaraswamy_mean(a: Tensor, b: Tensor) -> Tensor:
    """E[π] = b·B(1 + 1/a, b), elementwise."""
    one = 1 + 1 / a
    return torch.exp(b.log() + torch.lgamma(one) + torch.lgamma(b) - torch.lgamma(one + b))


def divergence(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """KL(Kumaraswamy(a, b) ‖ Beta(α, 1)) in nats, elementwise ≥ 0.

    ``(1 − α/a)(−γ − ψ(b) − 1/b) + ln(ab/α) − (b − 1)/b`` (Nalisnick & Smyth 2017, with β = 1).
    """
    return (1 - alpha / a) * (-EULER - torch.digamma(b) - 1 / b) + a.log() + b.log() - math.log(alpha) - (b - 1) / b


def relaxed_bernoulli(u: Tensor, p: Tensor, temperature: float) -> Tensor:
    """A concrete sample ``sigmoid((logit u + logit p)/T)`` in (0, 1): 1 with probability p as T goes to 0.

    Args:
        u: uniform in (0, 1).
        p: probabilities, broadcast with u.
        temperature: T > 0.
    """
    eps = 1e-6
    return torch.sigmoid((torch.logit(u, eps) + torch.logit(p, eps)) / temperature)
