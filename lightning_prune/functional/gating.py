"""Decisions on channels that a gradient goes through, and what they cost: SANP's and TAS's equations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def straight_through(logits: Tensor) -> Tensor:
    """1 where a logit is positive, else 0, with the gradient of its sigmoid (Bengio et al., arXiv 1308.3432)."""
    soft = logits.sigmoid()
    return (logits > 0).to(soft.dtype) + (soft - soft.detach())  # in this order, 0 and 1 are exact


def gumbel_pairs(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Two choices of each row without replacement, and their weights (TAS, arXiv 1905.09717).

    ``p = softmax((log softmax α + g)/T)`` with Gumbel noise g; the two of largest p, which are a sample without
    replacement from softmax α, share the weight in proportion to p.

    Args:
        logits: α, [rows, choices], 2 choices or more.
        uniform: in (0, 1), of the same shape.
        temperature: T > 0.

    Returns:
        (indices, int64 [rows, 2]; weights [rows, 2], which sum to 1 and carry the gradient).
    """
    noisy = (logits.log_softmax(1) - torch.log(-torch.log(uniform))) / temperature
    chosen = noisy.topk(2, dim=1).indices
    return chosen, noisy.gather(1, chosen).softmax(1)


def interpolate_channels(x: Tensor, width: int) -> Tensor:
    """Channel-wise interpolation, adaptive average pooling over the channels: [N, C, M] to [N, width, M]."""
    return F.adaptive_avg_pool1d(x.transpose(1, 2), width).transpose(1, 2)


def flops_loss(expected: Tensor, share: float, budget: float, tolerance: float = 0.05) -> Tensor:
    """TAS's price of widths: ``+log E`` over the budget, ``−log E`` under it by more than the tolerance, else 0.

    Args:
        expected: E, the share of all multiply-accumulates that is expected, a scalar > 0.
        share: that of the most likely widths.
        budget: the share that may be left.
        tolerance: as a share of all.
    """
    if share > budget:
        return expected.log()
    return -expected.log() if share < budget - tolerance else 0.0 * expected
