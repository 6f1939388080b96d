"""Thresholds on the path to a budget: what all layers share follows the path, what is each layer's own is learned.

A layer's threshold on ``w²/σ²`` is ``u_l = c · r_l``. The common factor ``c`` is whatever keeps the share that the path
asks for now: the one that normal weights would need, times a correction from what is really kept. The layer's own part
``r_l`` starts at a prior and learns by gradient descent; as ``c`` holds the budget, only differences between layers
count, and the price of a weight is the one at which they balance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.functional.budget import largest_thresholds
from lightning_prune.functional.ltp import gaussian_threshold
from lightning_prune.functional.order.kth import WHOLE, Shards

_GAIN, _STEP, _RANGE = 0.3, 0.3, 3.0  # share of the gap closed in a step, largest step and correction, in log u
_POWER = 0.75  # of the prior
_LEAN = 2.1  # of log r, toward one magnitude: a factor of eight
_LEAST, _MOST = 1e-6, 1e3  # of c: before anything is pruned, and beyond any budget


def fan_prior(fans: Sequence[tuple[int, int]], numels: Sequence[int]) -> Tensor:
    """Where the layers' own parts start: ``log r_l``, with ``r_l ∝ h^0.75``, float32 [layers].

    ``h`` is half the harmonic mean of a layer's fans, ``in·out/(in + out)``, which is large where a layer is wide on
    both sides, and small for stems, classifiers and depthwise layers, as in the densities of Erdős–Rényi–Kernel (Evci
    et al., arXiv 1911.11134). ``r = 1`` would prune all layers to the same share; as ``σ² ∝ 1/fan`` in fresh layers,
    ``r ∝ h`` is about one magnitude for the whole network, but does not depend on how layers are scaled. The power is
    ours, measured: 0.5 and 0.75 do as well on ResNet-20 at 50x (84.5 and 84.4 %, one magnitude 81.8), 0.75 better on a
    pretrained EfficientNet-Lite0 at 15x (75.9 and 76.9, one magnitude 76.2; with ``h = in`` alone, which empties the
    classifier, 66.4).

    Args:
        fans: (inputs of one output, outputs of one input) of each layer.
        numels: weights of each layer; the mean of ``log r`` over all weights is 0.
    """
    inputs, outputs = torch.tensor(fans, dtype=torch.float64).unbind(1)
    logs, n = _POWER * (inputs * outputs / (inputs + outputs)).log(), torch.tensor(numels, dtype=torch.float64)
    return _level(logs, n).float()


def lean_to_magnitude(log_r: Tensor, squares: Tensor, numels: Sequence[int]) -> Tensor:
    """A prior, nearer to one magnitude for the whole network (``r_l ∝ 1/mean w²``), float32 [layers].

    What training has made large next to its fans tells that a layer matters, but a layer before a norm may have any
    scale, so that is believed up to a factor of eight (ours, measured: `docs/methods/weights.md`). By that much, and no
    more, thresholds depend on how layers are scaled.

    Args:
        log_r: of each layer, on the CPU.
        squares: mean w² of each layer.
        numels: weights of each layer; the mean of ``log r`` over all weights is 0.
    """
    n, prior = torch.tensor(numels, dtype=torch.float64), log_r.double()
    one = _level(-squares.double().cpu().clamp_min(1e-12).log(), n)
    return _level(prior + (one - prior).clamp(-_LEAN, _LEAN), n).float()


def _level(logs: Tensor, n: Tensor) -> Tensor:
    """With a mean of 0 over all weights."""
    return logs - (logs * n).sum() / n.sum()


def prior_shares(log_r: Tensor, numels: Sequence[float], goal: float) -> tuple[Tensor, Tensor]:
    """Thresholds ``u_l = c·r_l`` at which normal weights keep a share ``goal`` of all, and what each layer keeps.

    Args:
        log_r: of each layer, on the CPU.
        numels: weights of each layer, or what they cost.
        goal: share of all of it to keep, in (0, 1].

    Returns:
        (u, kept shares), float64 [layers].
    """
    r, n = log_r.double().exp(), torch.tensor(numels, dtype=torch.float64)
    low, high = math.log(_LEAST), math.log(_MOST)
    for _ in range(60):
        middle = (low + high) / 2
        kept = torch.erfc((math.exp(middle) * r / 2).sqrt())
        low, high = (middle, high) if float((kept * n).sum() / n.sum()) > goal else (low, middle)
    u = math.exp(low) * r
    return u, torch.erfc((u / 2).sqrt())


def prior_scales(
    log_r: Tensor, weights: Sequence[Tensor], least: Sequence[int], numels: Sequence[int], goal: float,
    shards: Shards = WHOLE, prices: Sequence[float] = (),
) -> Tensor:  # fmt: skip
    """What ``u`` is in units of, so that at the goal each layer keeps what normal weights would; float32 [layers].

    That is σ² where weights are normal. A layer with few large and many small ones, such as a trained stem, would lose
    far more at ``u·σ²``: on MobileNetV2 at 20x the stem kept 10 % where its prior says 41.

    Args:
        log_r: of each layer, on the CPU.
        weights: of each layer, or this process's part of them.
        least: fewest weights that each layer keeps.
        numels: weights of each layer.
        goal: share of all weights to keep, in (0, 1], or of what they cost.
        shards: how the weights lie over processes.
        prices: of a weight of each layer; (): 1 each.
    """
    costs = [n * price for n, price in zip(numels, prices, strict=True)] if prices else numels
    u, shares = prior_shares(log_r, costs, goal)
    counts = [max(k, round(share * n)) for k, share, n in zip(least, shares.tolist(), numels, strict=True)]
    taus = largest_thresholds(weights, counts, shards)
    return taus / u.to(taus.device, taus.dtype)


def balanced_price(task: Tensor, band: Tensor) -> Tensor:
    """The price λ of a kept weight at which a common move of all thresholds costs nothing: ``−Σ τ·task / Σ τ·band``.

    Args:
        task, band: ``τ Σ s·g·w`` and ``τ Σ s`` of each layer, [layers].
    """
    return -task.sum() / band.sum().clamp_min(1e-30)


def common_factor(goal: float, correction: Tensor) -> Tensor:
    """``log c`` that keeps the share ``goal`` if weights are normal and ``correction`` is 0; a scalar."""
    return correction + math.log(max(gaussian_threshold(1 - goal), _LEAST))


def corrected(correction: Tensor, kept: Tensor, goal: float) -> Tensor:
    """The correction, nearer to the one that keeps ``goal``: a damped Newton step with the slope of normal weights.

    Args:
        correction: scalar, in log u.
        kept: share that is kept now, a scalar.
        goal: share to keep.
    """
    u = max(gaussian_threshold(1 - goal), _LEAST)
    slope = math.sqrt(u / (2 * math.pi)) * math.exp(-u / 2)  # −d kept/d log u
    step = (_GAIN * (kept - goal) / slope).clamp(-_STEP, _STEP)
    return (correction + step).clamp(-_RANGE, _RANGE)
