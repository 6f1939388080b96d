"""LTP's gate without a jump at the threshold, and its gradient step, fast: as `masks.ltp`, on every weight.

With the layer's norm held, or as it becomes. Equals `functional.shrink.fading`, which states the equations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.functional.shrink import FADING, fading
from lightning_prune.masks.chunks import chunks_of, scratch
from lightning_prune.masks.ltp import compiled

_LEAST = 1e-30  # of a threshold on w²: below it nothing fades


def faded(w: Tensor, tau: Tensor, out: Tensor | None = None, fuse: bool = False) -> tuple[Tensor, float | None]:
    """``v = w·m`` with ``m = relu(1 − (τ/w²)^¼)``, into ``out`` if given. ``tau``: 0-dim, ≥ 0.

    With ``fuse`` the passes are compiled into one.

    Returns:
        The faded weight, and in the chunked form Σ (1 − m), which `faded_step_` wants.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain expression by itself
        return fading(w, tau), None
    out = torch.empty_like(w) if out is None else out
    chunks = chunks_of(w, out, whole=fuse)
    if chunks is None:
        return out.copy_(compiled(fading, fuse)(w, tau)), None
    root = _root(tau)
    if fuse:
        [(x, v)] = chunks
        return out, sum(compiled(_fade_, True)(x, v, root.to(x.dtype)).tolist())
    factor = root.item()
    return out, sum(_fade_chunk_(x, v, factor) for x, v in chunks)


def held(
    w: Tensor, tau: Tensor, factor: Tensor, out: Tensor | None = None, fuse: bool = False
) -> tuple[Tensor, float | None, Tensor | None]:
    """The faded weight times ``factor``, 0-dim, into ``out`` if given; what `faded` returns, and (Σ w², Σ faded²).

    Where the network is compiled there is neither.
    """
    if torch.compiler.is_compiling():
        return fading(w, tau) * factor, None, None
    out = torch.empty_like(w) if out is None else out
    chunks = None if fuse else chunks_of(w, out)
    if chunks is None:
        v, both = compiled(_held_whole, fuse)(w, tau, factor)
        return out.copy_(v), None, both
    root, c, gone, before, after = _root(tau).item(), factor.item(), 0.0, 0.0, 0.0
    for x, v in chunks:
        gone += _fade_chunk_(x, v, root)
        before, after = before + torch.dot(x, x).item(), after + torch.dot(v, v).item()
        v.mul_(c)
    return out, gone, torch.tensor((before, after), dtype=torch.float64)


def faded_step_(
    w: Tensor,
    grad: Tensor,
    masked: Tensor,
    gone: float | None,
    tau: Tensor,
    fuse: bool = False,
    feedback: float = 0.0,
    factor: Tensor | None = None,
) -> Tensor:
    """Turn ``grad = dL/dv`` into the weight's gradient ``grad·(k + ρ(1 − k))``, in place; k is 1 where it is kept.

    Args:
        w: weights.
        grad: gradient in the effective weight, shape of ``w``.
        masked, gone: as `faded` or `held` gave them for the same ``w`` and ``tau``; no sum: the whole-tensor form.
        tau: threshold on w², 0-dim, ≥ 0.
        fuse: compile the passes.
        feedback: ρ; 0: pruned weights get no gradient, 1: straight through.
        factor: what `held` multiplied by, c, 0-dim; none: 1.

    Returns:
        shape [5], ordered as `masks.ltp.STATS`: Σ c·s·g·w, Σ s (s = (1 − m)/4τ of the kept: dm/dτ is −s), and three
        times #(w² > τ): how many are kept, none of them softly, and all pull on the threshold.
    """
    whole = gone is None or feedback or (fuse and factor is not None)  # the compiled pass knows of no factor
    chunks = None if whole else chunks_of(w, grad, masked, whole=fuse)
    if chunks is None:
        stats: Tensor = compiled(_step_whole_, fuse)(w.detach(), grad, masked, tau, feedback, factor)
        return stats
    assert gone is not None
    c = 1.0 if factor is None else factor.item()
    if fuse:
        [(_, g, v)] = chunks
        task, kept = compiled(_step_, True)(g, v, _root(tau).to(g.dtype)).tolist()
    else:
        task, kept = _step_chunks_(chunks, 1 / c)
    rate = FADING / float(tau) if tau > 0 else 0.0
    return torch.tensor((task * rate * c, (gone - (w.numel() - kept)) * rate, *[kept] * 3), dtype=torch.float64)


def _root(tau: Tensor) -> Tensor:
    """τ^¼, 0-dim."""
    return tau.clamp_min(_LEAST) ** FADING


def _fade_chunk_(x: Tensor, out: Tensor, root: float) -> float:
    """1 − m = τ^¼/√|w|, at most 1, is worked out where v goes: a third array costs a fifth more. Returns its sum."""
    rest = torch.abs(x, out=out).rsqrt_().mul_(root).clamp_(max=1)
    gone = rest.sum().item()
    torch.addcmul(x, x, rest, value=-1, out=out)
    return gone


def squares(w: Tensor, faded: Tensor) -> Tensor:
    """Σ of squares of both, [2]."""
    return torch.stack([at_least_float32(x).square().sum() for x in (w, faded)])


def _held_whole(w: Tensor, tau: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    v = fading(w, tau)
    return v * factor, squares(w, v)


def _fade_(x: Tensor, out: Tensor, root: Tensor) -> Tensor:
    rest = (x.abs().rsqrt() * root).clamp(max=1)
    out.copy_(x - x * rest)
    return torch.stack([torch.where(rest < 1, rest, 0).sum(), (rest == 1).to(x.dtype).sum()])  # the few not in the many


def _step_chunks_(chunks: Sequence[tuple[Tensor, ...]], scale: float) -> tuple[float, float]:
    """Mask the gradients in place; ``scale·v`` is w·m. Returns Σ g·w(1 − m) and how many weights are kept."""
    task = kept = 0.0
    for x, g, v in chunks:
        t = torch.ne(v, 0, out=scratch(x.dtype)[: x.numel()])  # as 0 and 1: `count_nonzero` is ten times slower
        g.mul_(t)
        kept += t.sum().item()
        task += torch.dot(g, torch.sub(x, v, alpha=scale, out=t)).item()
    return task, kept


def _step_(grad: Tensor, masked: Tensor, root: Tensor) -> Tensor:
    """The same in one compiled pass, without w, which would be read for the sum alone.

    Of a kept weight w(1 − m) = ±τ^¼·√|w|, and |v| = |w| − τ^¼·√|w| is quadratic in √|w|.
    """
    kept, size = (masked != 0).to(grad.dtype), masked.abs()
    rest = root * (root + (root * root + 4 * size).sqrt()) / 2
    taken = grad * kept  # an overflow of a pruned weight's gradient must show in the sum, as NaN
    grad.copy_(taken)
    return torch.stack([(taken * torch.where(masked < 0, -rest, rest)).sum(), kept.sum()])


def _step_whole_(
    w: Tensor, grad: Tensor, masked: Tensor, tau: Tensor, feedback: float, factor: Tensor | None
) -> Tensor:
    x, v = at_least_float32(w), at_least_float32(masked)
    v = v if factor is None else v / factor
    above = (v != 0).to(x.dtype)
    rate, rest = torch.where(tau > 0, FADING / tau.clamp_min(_LEAST), torch.zeros_like(tau)), x - v  # w(1 − m)
    task = rate * (above * at_least_float32(grad) * rest).sum()
    band = rate * torch.where(v != 0, rest / x, torch.zeros_like(x)).sum()
    if feedback < 1:
        grad.mul_(above + feedback * (1 - above))
    task = task if factor is None else task * factor
    return torch.stack([task, band, *[above.sum()] * 3])
