"""No output of a layer runs off while its pruned weights still train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.functional.order.kth import WHOLE, Shards

_SHARE, _TIMES = 0.75, 3.0  # ours


@torch.no_grad()
def limit_rows_(grads: Sequence[Tensor], shards: Shards = WHOLE, rows: Sequence[int] | None = None) -> None:
    """Shrink, in place, the gradients of rows that are far larger than those of their layer's other rows.

    A normalisation behind a layer divides by what an output varies. Of an output with one weight left, or none, that
    can be next to nothing: its pruned weights, which feedback lets train, then get gradients a thousand times those of
    the rest, jump over the threshold, and the training diverges (its kept weights get none, as the output's scale does
    not count). So no row's gradient may have a norm above three times the upper quartile of the norms that are not 0:
    in the way of adaptive gradient clipping (Brock et al., arXiv 2102.06171), with the layer's own rows as the measure,
    so that nothing depends on how the loss is scaled.

    Args:
        grads: of each layer's weight, [rows, ...]; of shards this process's rows.
        shards: how they lie over processes; norms of all rows are exchanged, once.
        rows: of each whole weight, where it is in shards.
    """
    sizes = [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=_wide(g)) for g in grads]
    for grad, own, all_rows in zip(grads, sizes, _everywhere(sizes, shards, rows), strict=True):
        place = ((1 - _SHARE) * (all_rows > 0).sum()).long().clamp_max(len(all_rows) - 1)
        usual = all_rows.sort(descending=True).values.gather(0, place.view(1))
        factor = (_TIMES * usual / own.clamp_min(torch.finfo(own.dtype).tiny)).clamp_max(1.0).to(grad.dtype)
        if grad.device.type == "cpu":  # few rows or none; a device is not asked which, which would wait for it
            high = (factor < 1).nonzero().flatten()
            if len(high):
                grad[high] *= factor[high].view(-1, *[1] * (grad.ndim - 1))
        else:
            grad.mul_(factor.view(-1, *[1] * (grad.ndim - 1)))


def _everywhere(sizes: Sequence[Tensor], shards: Shards, rows: Sequence[int] | None) -> Sequence[Tensor]:
    """The norms of each layer's rows on all processes; those of missing rows are 0."""
    if shards.size == 1 or not sizes:
        return sizes
    assert rows is not None
    most = [-(-n // shards.size) for n in rows]  # the most rows that a process holds
    padded = [F.pad(own, (0, n - len(own))) for own, n in zip(sizes, most, strict=True)]
    return [part.flatten() for part in shards.of_each(torch.cat(padded)).split(most, dim=1)]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
