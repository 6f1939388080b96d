"""No output of a layer runs off while its pruned weights still train."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.functional.order.kth import WHOLE, Shards

_SHARE, _TIMES = 0.75, 4.0  # ours


@torch.no_grad()
def limit_rows_(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    masked: Sequence[Tensor],
    shards: Shards = WHOLE,
    rows: Sequence[int] | None = None,
) -> None:
    """Shrink, in place, the gradients of rows that are far larger than those of their layer would be without its mask.

    A normalisation behind a layer divides by what an output varies. Of an output with one weight left, or none, that
    can be next to nothing: its pruned weights, which feedback lets train, then get gradients a thousand times those of
    the rest, jump over the threshold, and the training diverges (its kept weights get none, as the output's scale does
    not count). There the gradient of a row goes with ``1/|v|``, v what is left of its weights w, so that without the
    mask it would be ``|v|/|w|`` of what it is. No row's gradient may have a norm above four times the upper quartile of
    these: in the way of adaptive gradient clipping (Brock et al., arXiv 2102.06171), with the layer's own rows as the
    measure, so that nothing depends on how the loss is scaled, and without the mask, as at 50x a quarter of the rows
    and more may be empty at once.

    Args:
        grads: of each layer's weight, [rows, ...]; of shards this process's rows.
        weights: the weights, of the same shapes.
        masked: what the network computes with in their place.
        shards: how they lie over processes; norms of all rows are exchanged, once.
        rows: of each whole weight, where it is in shards.
    """
    if not grads:
        return
    lengths, own = [len(g) for g in grads], _norms(grads)
    bare = own * (_norms(masked) / _norms(weights)).nan_to_num_(0.0).clamp_max_(1.0)
    # All layers at once: on a device each operation on few rows costs a launch, whatever it does.
    everywhere, counts = (bare, lengths) if shards.size == 1 else _everywhere(bare.split(lengths), shards, rows)
    usual = _upper_quartiles(everywhere, counts)[_runs(tuple(lengths), own.device)[0]]
    factor = (_TIMES * usual / own.clamp_min(torch.finfo(own.dtype).tiny)).clamp_max(1.0)
    for grad, each in zip(grads, factor.split(lengths), strict=True):
        share = each.to(grad.dtype)
        if grad.device.type == "cpu":  # few rows or none; a device is not asked which, which would wait for it
            high = (share < 1).nonzero().flatten()
            if len(high):
                grad[high] *= share[high].view(-1, *[1] * (grad.ndim - 1))
        else:
            grad.mul_(share.view(-1, *[1] * (grad.ndim - 1)))


def _norms(layers: Sequence[Tensor]) -> Tensor:
    """Of the rows of all layers, one layer after the other."""
    return torch.cat([torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=_wide(x)) for x in layers])


def _upper_quartiles(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """The upper quartile of those values of each run that are not 0, [runs]; of a run of zeros 0.

    Args:
        values: of all runs, one run after the other, not negative.
        lengths: of the runs, from 1.
    """
    run, begin = _runs(tuple(lengths), values.device)
    count = torch.zeros_like(begin).index_add_(0, run, (values > 0).long())
    falling = values.argsort(descending=True)
    falling = falling[run[falling].argsort(stable=True)]  # of each run, one run after the other
    return values[falling[begin + ((1 - _SHARE) * count).long()]]


@lru_cache(maxsize=8)
def _runs(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The number of the run that each value is in, and where each run begins: sent to the device once a training."""
    each = torch.tensor(lengths)
    return torch.arange(len(lengths)).repeat_interleave(each).to(device), (each.cumsum(0) - each).to(device)


def _everywhere(sizes: Sequence[Tensor], shards: Shards, rows: Sequence[int] | None) -> tuple[Tensor, Sequence[int]]:
    """The sizes of each layer's rows on all processes, layer after layer, and how many; of missing rows they are 0."""
    assert rows is not None
    most = [-(-n // shards.size) for n in rows]  # the most rows that a process holds
    padded = [F.pad(own, (0, n - len(own))) for own, n in zip(sizes, most, strict=True)]
    return shards.of_each(torch.cat(padded)).T.flatten(), [n * shards.size for n in most]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
