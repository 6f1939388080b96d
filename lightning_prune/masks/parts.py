"""No layer runs off as a whole while its pruned weights still train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.functional.order.kth import WHOLE, Shards
from lightning_prune.masks.ltp import CHUNK, _scratch, in_chunks

_TIMES = 2.0  # ours


@torch.no_grad()
def limit_pruned_(weights: Sequence[Tensor], grads: Sequence[Tensor], taus: Tensor, shards: Shards = WHOLE) -> None:
    """Shrink, in place, the gradients of a layer's pruned weights to what its kept ones get, times two.

    The output of a layer before a normalisation does not depend on how large the kept weights are, so their gradient
    does not point along them and fades as they grow. What feedback gives to pruned weights is not bound so: with it
    whole layers grew hundreds of times in a hundred steps, after which they hardly learn, and keep ever more of the
    budget. So the root mean square of the pruned weights' gradients may be at most twice that of the kept ones'. Where
    all weights matter alike nothing changes, at any sparsity, and nothing depends on how the loss is scaled.

    Args:
        weights: of each layer; of shards this process's.
        grads: of each, of its shape.
        taus: the thresholds on w², [layers]; weights from there on are kept.
        shards: how they lie over processes; three sums a layer are exchanged, at once.
    """
    if not weights:
        return
    own = [_sums(w.detach(), g, tau) for w, g, tau in zip(weights, grads, taus, strict=True)]
    kept, pruned, share, rest = shards.total(torch.stack(own)).unbind(1)
    usual, fed = kept / share.clamp_min(1), pruned / rest.clamp_min(1)
    factors = (_TIMES * (usual / fed.clamp_min(torch.finfo(fed.dtype).tiny)).sqrt()).clamp_max(1.0)
    # Where nothing is kept there is nothing to go by; what is not finite is left to whoever looks for it.
    factors = torch.where((share > 0) & factors.isfinite(), factors, 1.0)
    for w, g, tau, factor in zip(weights, grads, taus, factors, strict=True):
        if g.device.type != "cpu" or factor < 1:  # a device is not asked, which would wait for it
            for x, part in in_chunks(w.detach(), g):
                part.mul_(_kept(x, tau).to(part.dtype).mul_(1 - factor).add_(factor))


def _kept(w: Tensor, tau: Tensor) -> Tensor:
    """1 where a weight stays, else 0; of a piece that fits the cache in this thread's buffer."""
    if w.device.type != "cpu" or w.numel() > CHUNK or w.dtype not in (torch.float32, torch.float64):
        return (at_least_float32(w).square() >= tau).float()
    out = _scratch(w.dtype)[: w.numel()].view(w.shape)
    return torch.ge(torch.mul(w, w, out=out), tau, out=out)


def _sums(w: Tensor, grad: Tensor, tau: Tensor) -> Tensor:
    """(Σ g² of kept, Σ g² of pruned, # kept, # pruned), in float64 on the CPU."""
    wide = torch.float64 if w.device.type == "cpu" else torch.float32
    sums = torch.zeros(3, dtype=wide, device=w.device)
    for x, g in in_chunks(w, grad):
        flat, on = at_least_float32(g).flatten(), _kept(x, tau).flatten()
        count, whole = on.sum(), torch.dot(flat, flat)
        sums += torch.stack([torch.dot(on.mul_(flat), flat), whole, count]).to(wide)
    part, whole, count = sums.unbind()
    return torch.stack([part, whole - part, count, w.numel() - count])
