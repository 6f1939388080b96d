"""Thresholds that change what they keep, the equations: it moves toward zero, so that there is no jump."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_prune.functional.ltp import at_least_float32

FADING = 0.25  # ours, measured: `docs/methods/weights.md`
_LEAST = 1e-15  # of |w|
_MOST = 1e3  # of what holds a norm: of a layer that has faded all over nothing would be left to hold


def fading(w: Tensor, tau: Tensor) -> Tensor:
    """``w·m`` with ``m = relu(1 − (τ/w²)^¼)``, shape and dtype of ``w``: a weight fades before it goes.

    There is no jump at the threshold. Of a weight of 16τ half is left, of a soft threshold, a power of ½, three
    quarters; a power of 1 is Breiman's garrote, and a step is the limit.

    Args:
        w: weights.
        tau: threshold on w², 0-dim, ≥ 0; 0 leaves all as it is.
    """
    x = at_least_float32(w)
    rest = tau**FADING * x.abs().clamp_min(_LEAST).rsqrt()  # 1 − m; a root is faster than a power
    return (x * (1 - rest).clamp_min(0)).to(w.dtype)


def holding(w_squares: Tensor, faded_squares: Tensor) -> Tensor:
    """The factor that gives a layer the norm back that fading took, ``√(Σ w² / Σ faded²)``, in [1, 1000].

    Args:
        w_squares, faded_squares: Σ of squares of each layer's weights, and of the same faded, [layers].
    """
    return (w_squares / faded_squares).nan_to_num(1.0).sqrt().clamp(1, _MOST)  # 0/0: a layer of zeros


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


def _soft(w: Tensor, tau: Tensor) -> Tensor:
    return soft_threshold(at_least_float32(w), tau.sqrt()).to(w.dtype)


def _rescaled(w: Tensor, tau: Tensor) -> Tensor:
    x, alpha = at_least_float32(w), tau.sqrt()
    return (soft_threshold(x, alpha) * rescaling(x, alpha)).to(w.dtype)


# What a network computes with in place of weights ``w``, at a threshold on ``w²`` (0-dim), "held" but for its factor; a
# "step" changes no weight.
FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fading": fading, "held": fading, "soft": _soft, "rescaled": _rescaled,
}  # fmt: skip
