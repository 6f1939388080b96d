"""Outputs of a layer whose weights are nearly all pruned: they may not run off while pruned weights still train."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 0.1
"""Share of a row's energy, Σv²/Σw², below which its gradient shrinks. Ours."""


@torch.no_grad()
def slow_fading_rows_(w: Tensor, masked: Tensor, grad: Tensor) -> None:
    """Shrink, in place, the gradients of rows of which less than `LEAST` of the energy is used.

    A normalisation behind a layer divides by what an output varies, so the gradient of a row grows as 1/‖v‖ while the
    mask takes its weights, up to 1/√ε where all are gone: the pruned weights, which feedback lets train, would jump
    over the threshold, and the training diverges. The gradient is multiplied by ``min(1, ‖v‖²/(0.1·‖w‖²))``, so that
    beside the row no step is more than ten times as large as the dense row's would be. A row that is all zeros waits
    for its threshold to fall.

    Args:
        w: weights, [rows, ...].
        masked: the weights in use, of the same shape.
        grad: of the same shape.
    """
    used, own = (torch.linalg.vector_norm(x.detach().flatten(1), dim=1, dtype=_wide(x)) for x in (masked, w))
    energy = (used / own.clamp_min(torch.finfo(own.dtype).tiny)).square()
    if bool((energy < LEAST).any()) or energy.device.type != "cpu":  # a device is not asked, which would wait for it
        grad.mul_((energy / LEAST).clamp_max(1.0).to(grad.dtype).view(-1, *[1] * (grad.ndim - 1)))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
