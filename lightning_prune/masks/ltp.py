"""The mask and the gradient step of one layer, fast: what runs on every weight in every training step.

On the CPU both walk the layer in chunks that stay in the cache and reuse one small buffer, which is three to four
times faster than whole-tensor expressions (whose temporaries are bound by memory and page faults). Elsewhere the
whole-tensor form is used. torch.compile can fuse either into a pass or two over memory. All forms equal
`functional.ltp`, which states the equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.functional.ltp import GATE_RANGE, at_least_float32
from lightning_prune.masks.chunks import chunks_of, scratch

_TINY = 1e-30  # far below any weight that matters
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # found once: a name of torch.ops is looked up slowly

Sums = tuple[float, float]

# What a gradient step sums over a layer, in this order.
STATS = ("task", "band", "kept", "hard_kept", "in_band")
TASK, BAND, KEPT, HARD_KEPT, IN_BAND = range(len(STATS))
SQUARE, FADED = len(STATS), len(STATS) + 1  # and where norms are held Σ w² and Σ faded²
_BAND = torch.sigmoid(torch.tensor(4.0)).item() - 0.5  # |w² − τ| < 4T, seen from the gate


def gate(w: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """``sigm(slope·w² + shift)`` on the whole tensor, in float32 or better."""
    w = at_least_float32(w)
    return torch.sigmoid((w * w * slope + shift).clamp(-GATE_RANGE, GATE_RANGE))


def soft_mask(
    w: Tensor, slope: Tensor, shift: Tensor, out: Tensor | None = None, fuse: bool = False
) -> tuple[Tensor, Sums | None]:
    """``w · sigm(slope·w² + shift)``, into ``out`` if given. ``slope = 1/T`` and ``shift = −τ/T`` are 0-dim tensors.

    With ``fuse`` the passes are compiled into one.

    Returns:
        The masked weight, and in the chunked form the sums (Σ m, Σ m(1 − m)), which `soft_step_` wants.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain expression by itself
        return (at_least_float32(w) * gate(w, slope, shift)).to(w.dtype), None
    out = torch.empty_like(w) if out is None else out
    chunks = chunks_of(w, out, whole=fuse)
    if chunks is None:
        compiled(_mask_whole_, fuse)(w, slope, shift, out)
        return out, None
    shift = shift.to(w.dtype)
    if fuse:
        [(x, v)] = chunks
        kept, band = compiled(_mask_and_sums_, True)(x, slope, shift, v).tolist()
        return out, (kept, band)
    factor, buffer, one = slope.item(), scratch(w.dtype), w.new_ones(())
    kept = band = 0.0
    for x, v in chunks:
        m = torch.addcmul(shift, x, x, value=factor, out=buffer[: x.numel()])
        F.hardtanh_(m, -GATE_RANGE, GATE_RANGE).sigmoid_()  # a clamp, and faster
        torch.mul(x, m, out=v)
        kept += m.sum().item()
        band += _sigmoid_backward(one, m, grad_input=m).sum().item()  # m(1 − m) in one pass
    return out, (kept, band)


def soft_step_(
    w: Tensor, grad: Tensor, masked: Tensor, sums: Sums | None, slope: Tensor, shift: Tensor, count: bool,
    fuse: bool = False, feedback: float = 0.0,
) -> Tensor:  # fmt: skip
    """Turn ``grad = dL/dv`` into the weight's gradient ``grad·(m + ρ(1 − m))``, in place, and return the layer's sums.

    The chunked form does without the sigmoid: ``m = v/w`` and ``w(1 − m) = w − v``.

    Args:
        w: weights.
        grad: gradient in the effective weight, shape of ``w``; multiplied by the gate, but for the share ``feedback``.
        masked, sums: as `soft_mask` gave them for the same ``w``, slope and shift; no sums: the whole-tensor form.
        slope, shift: 1/T and −τ/T, 0-dim.
        count: also count weights above the threshold and inside the band (two more passes); NaN otherwise.
        fuse: compile the passes (those of a step that counts stay as they are).
        feedback: ρ; 0: ``grad·m`` [eq. 14], 1: straight through, ``grad`` stays as it is.

    Returns:
        shape [5], ordered as `STATS`: Σ s·g·w, Σ s (s = m(1−m)/T), Σ m, #(w² > τ), #(|w² − τ| < 4T).
    """
    fused = fuse and not count
    chunks = chunks_of(w, grad, masked, whole=fused)
    if chunks is None or sums is None:
        stats: Tensor = compiled(_soft_step_whole_, fuse)(w.detach(), grad, slope, shift, count, feedback)
        return stats
    task = hard = near = 0.0
    for x, g, v in chunks:
        if fused:
            task += compiled(_step_and_sum_, True)(x, g, v, feedback).item()
            continue
        t = scratch(w.dtype)[: x.numel()]
        if count:
            m = torch.div(v, x, out=t)
            hard += int(torch.count_nonzero(m > 0.5))
            near += int(torch.count_nonzero((m - 0.5).abs_() < _BAND))
        task += _weight_step_(x, g, v, t, feedback)
    if math.isnan(task) and not feedback:  # 0/0 where a weight is exactly 0, which is rare: its gate is 0
        grad.masked_fill_(w.detach() == 0, 0)
        task = sum(torch.dot(g, x - v).item() for x, g, v in chunks)
    factor, (kept, band) = slope.item(), sums
    counts = (hard, near) if count else (torch.nan, torch.nan)
    return torch.tensor((task * factor, band * factor, kept, *counts), dtype=torch.float64)


def _weight_step_(x: Tensor, g: Tensor, v: Tensor, buffer: Tensor, feedback: float) -> float:
    """One chunk's weight gradient, in ``g``; returns its Σ m(1 − m)·g·w."""
    if feedback == 1:  # g stays, and w·m(1 − m) = v − v·m takes a pass less
        rest = torch.addcmul(v, v, torch.div(v, x, out=buffer), value=-1, out=buffer)
        task = torch.dot(g, rest).item()
        return task if not math.isnan(task) else torch.dot(g, rest.nan_to_num_(0.0)).item()  # 0/0, as below
    rest = torch.sub(x, v, out=buffer)  # w(1 − m)
    if not feedback:
        g.mul_(v).div_(x)  # g·m
        return torch.dot(g, rest).item()
    task = torch.dot(g, rest.mul_(v).div_(x)).item()
    if math.isnan(task):  # 0/0, as below
        task = torch.dot(g, rest.nan_to_num_(0.0)).item()
    g.mul_(torch.div(v, x, out=buffer).nan_to_num_(0.0).mul_(1 - feedback).add_(feedback))
    return task


@cache
def compiled(function: Callable[..., Any], fuse: bool) -> Callable[..., Any]:
    """The function, compiled once for tensors of any length if ``fuse``."""
    return torch.compile(function, dynamic=True) if fuse else function


def _mask_and_sums_(x: Tensor, slope: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    m = gate(x, slope, shift)
    out.copy_(x * m)
    return torch.stack([m.sum(), (m * (1 - m)).sum()])


def _step_and_sum_(x: Tensor, grad: Tensor, masked: Tensor, feedback: float) -> Tensor:
    m = masked / (x + _TINY)
    task = (grad * m * (x - masked)).sum()
    if feedback < 1:  # else it stays, and writing it is a pass over memory
        grad.copy_(grad * (m + feedback * (1 - m)))
    return task


def _mask_whole_(w: Tensor, slope: Tensor, shift: Tensor, out: Tensor) -> None:
    out.copy_(at_least_float32(w) * gate(w, slope, shift))


def _soft_step_whole_(
    w: Tensor, grad: Tensor, slope: Tensor, shift: Tensor, count: bool, feedback: float = 0.0
) -> Tensor:
    x = at_least_float32(w)
    m = gate(x, slope, shift)
    s = m * (1 - m) * slope
    task = (s * at_least_float32(grad) * x).sum()
    nan = torch.full_like(task, torch.nan)
    stats = torch.stack([
        task, s.sum(), m.sum(),
        (m > 0.5).sum().to(task.dtype) if count else nan,
        ((m - 0.5).abs() < _BAND).sum().to(task.dtype) if count else nan,
    ])  # fmt: skip
    if feedback < 1:
        grad.mul_(m + feedback * (1 - m) if feedback else m)
    return stats


def chunked_sum(w: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """``of(w).sum()`` in float32 or better, a scalar, without a temporary of the layer's size on the CPU."""
    chunks = chunks_of(w) or [(at_least_float32(w.detach()),)]
    return torch.stack([of(x).sum() for (x,) in chunks]).sum()


def zeros_step_(w: Tensor, grad: Tensor) -> None:
    """Zero ``grad`` in place wherever the weight is exactly 0: what is pruned stays pruned."""
    for x, g in chunks_of(w, grad) or [(w.detach(), grad)]:
        g.mul_(torch.sign(x).square_())  # several times faster than a comparison and masked_fill on the CPU
