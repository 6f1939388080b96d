"""One Adam step on a small vector of thresholds, as a pure in-place function.

torch's own Adam cannot leave single entries of a tensor out of a step, and thresholds of layers that got no gradient
in this step (another optimizer's, a frozen part) must stay exactly where they are, without a device sync.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.98), 1e-12


def adam_step_(
    value: Tensor, grad: Tensor, mean: Tensor, square: Tensor, count: Tensor, active: Tensor, lr: float
) -> None:
    """Move ``value`` by one Adam step (Kingma & Ba 2015) where ``active``; elsewhere nothing changes.

    Args:
        value, grad, mean, square, count: shape [layers]; all but ``grad`` are updated in place.
        active: bool [layers].
        lr: step size, in units of ``value``.
    """
    b1, b2 = BETAS
    grad = torch.where(active, grad, torch.zeros_like(grad))
    count.add_(active.to(count.dtype))
    mean.copy_(torch.where(active, b1 * mean + (1 - b1) * grad, mean))
    square.copy_(torch.where(active, b2 * square + (1 - b2) * grad * grad, square))
    corrected = mean / (1 - b1**count).clamp_min(EPS)
    root = (square / (1 - b2**count).clamp_min(EPS)).sqrt() + EPS
    value.sub_(torch.where(active, lr * corrected / root, torch.zeros_like(value)))
