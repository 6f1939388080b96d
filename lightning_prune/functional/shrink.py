"""Soft thresholding of weights, the equations: what is kept moves toward zero by the threshold, without a jump."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_threshold(w: Tensor, alpha: Tensor) -> Tensor:
    """``sign(w)·relu(|w| − α)``, shape of ``w`` (Kusupati et al., arXiv 2002.03231); ``alpha`` ≥ 0, 0-dim."""
    return w - torch.clamp(w, min=-alpha, max=alpha)


def rescaling(w: Tensor, alpha: Tensor) -> Tensor:
    """The factor that gives an output channel the mass back that it has lost, ``1.01 / (Σ_kept |w| / Σ |w| + 0.01)``.

    As in the code of Vanderschueren & De Vleeschouwer (arXiv 2212.01076): by the magnitudes before they shrink, 101
    at most.

    Args:
        w: weights of one layer, output channels first.
        alpha: threshold on ``|w|``, 0-dim.

    Returns:
        [channels, 1, ...], of as many dims as ``w``.
    """
    magnitude = w.abs()
    inner = tuple(range(1, w.ndim))
    kept = torch.where(magnitude > alpha, magnitude, torch.zeros_like(magnitude)).sum(inner, keepdim=True)
    share = kept / magnitude.sum(inner, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    return 1.01 / (share + 0.01)
