"""Floors, alignment and equal widths bring groups back that the network needs; a budget is met within them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.vectors import Vectors, kept_count
from lightning_prune.errors import PlanError

_TOLERANCE = 0.005  # share of the budget that may stay unused before single groups are tried
_SEARCH = 200  # groups that are tried one by one to come closer to the budget


def check_limits(min_channels: int | float, divisor: int) -> None:
    """Raises PlanError for a floor or a divisor out of its range."""
    if divisor < 1:
        raise PlanError(f"divisor={divisor}: expected a positive number, such as 8")
    if isinstance(min_channels, float) and not 0 <= min_channels <= 1:
        raise PlanError(f"min_channels={min_channels}: expected a count (int) or a share from 0 to 1 (float)")


def repair(
    graph: ChannelGraph, keep: Tensor, score: Tensor, *, divisor: int = 1, min_channels: int | float = 1,
    equal: Iterable[Sequence[Tensor]] = (), empty: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Restores the best of the removed groups until every constraint holds. Nothing more is ever removed.

    Args:
        keep: bool [groups].
        score: float [groups]; the best of the removed groups come back first.
        divisor: channel counts (dim 0 of every tensor that is cut) become multiples of it, or stay as they are.
        min_channels: at least so many channels stay in every layer; a float is a share of the layer's channels.
        equal: vectors of groups whose kept counts must be equal.
        empty: bool [groups], layers that lose all of their channels: they have no floor.

    Returns:
        bool [groups].
    """
    keep, (layers, others) = keep.clone(), graph.widths
    if empty is not None and bool(empty.any()):
        layers, others = (Vectors(ids for ids in v.each if not _within(ids, empty)) for v in (layers, others))
    ties = [tuple(g) for g in equal]

    def restore(ids: Tensor, target: int) -> bool:
        missing = target - kept_count(ids, keep)
        if missing <= 0:
            return False
        gone = ids[ids >= 0].unique()
        gone = gone[~keep[gone]]
        for identity in gone[score[gone].argsort(descending=True, stable=True)].tolist():
            keep[identity] = True
            missing -= int((ids == identity).sum())
            if missing <= 0:
                break
        return True

    changed = True
    while changed:
        changed = False
        for ids, left in _counted(layers, keep):
            size = len(ids)
            floor = min_channels if isinstance(min_channels, int) else math.ceil(min_channels * size)
            target = max(left, min(max(1, floor), size))
            if target < size:
                target = min(size, math.ceil(target / divisor) * divisor)
            changed |= left < target and restore(ids, target)
        for ids, left in _counted(others, keep):
            changed |= left < 1 and restore(ids, 1)
        for group in ties:
            most = max(kept_count(ids, keep) for ids in group)
            for ids in group:
                changed |= restore(ids, min(most, len(ids)))
    return keep


def _counted(vectors: Vectors, keep: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Iterates over (groups, how many of them stay now): `keep` may change meanwhile."""
    counts, then = vectors.counts(keep), keep.clone()
    for i, ids in enumerate(vectors.each):
        if not torch.equal(keep, then):
            counts, then = vectors.counts(keep), keep.clone()
        yield ids, counts[i]


def _within(ids: Tensor, chosen: Tensor) -> bool:
    """Whether all channels of a vector are of chosen groups."""
    return bool((ids >= 0).all()) and bool(chosen[ids].all())


def meet_budget(
    order: Tensor, size: int, cost: Callable[[Tensor], float], budget: float, repaired: Callable[[Tensor], Tensor]
) -> Tensor:
    """Removes groups in `order` until the repaired model costs at most ``budget``, then comes as close as it can.

    One more group can cost more than the tolerance: single groups further back are restored while they fit.

    Args:
        size: number of groups in all.
        cost: of a selection (bool [size], True where kept), as a share of the whole; it may not rise when one goes.
        repaired: restores what floors, alignment and equal splits ask for.

    Raises:
        PlanError: the budget is not met with all of ``order`` gone; the message has the least possible cost.
    """

    def keep(count: int) -> Tensor:
        mask = torch.ones(size, dtype=torch.bool)
        mask[order[:count]] = False
        return repaired(mask)

    low, high = 0, len(order)
    if cost(keep(0)) <= budget:
        return keep(0)
    best = keep(high)
    if cost(best) > budget:
        raise PlanError(f"{cost(best):.3f} stays even with every group removed that may go")
    while high - low > 1:
        middle = (low + high) // 2
        mask = keep(middle)
        if cost(mask) > budget:
            low = middle
        else:
            high, best = middle, mask
    gone = order[:high][~best[order[:high]]]
    for identity in reversed(gone[-_SEARCH:].tolist()):
        if cost(best) >= budget * (1 - _TOLERANCE):
            break
        more = best.clone()
        more[identity] = True
        more = repaired(more)
        if cost(more) <= budget:
            best = more
    return best
