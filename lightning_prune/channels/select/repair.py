"""Floors, alignment and equal widths: groups that come back because the network needs them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.keep import kept_count
from lightning_prune.errors import PlanError


def check_limits(min_channels: int | float, divisor: int) -> None:
    """Raises PlanError for a floor or a divisor out of its range."""
    if divisor < 1:
        raise PlanError(f"divisor={divisor}: expected a positive number, such as 8")
    if isinstance(min_channels, float) and not 0 <= min_channels <= 1:
        raise PlanError(f"min_channels={min_channels}: expected a count (int) or a share from 0 to 1 (float)")


def repair(
    graph: ChannelGraph,
    keep: Tensor,
    score: Tensor,
    *,
    divisor: int = 1,
    min_channels: int | float = 1,
    equal: Iterable[Sequence[Tensor]] = (),
    empty: Tensor | None = None,
) -> Tensor:
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
    keep = keep.clone()
    layers = _distinct((ids for _, dim, ids in graph.each() if dim == 0), empty)
    others = _distinct([*(ids for _, dim, ids in graph.each() if dim > 0), *(c.ids for c in graph.counts)], empty)
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
        for ids in layers:
            size, left = len(ids), kept_count(ids, keep)
            floor = min_channels if isinstance(min_channels, int) else math.ceil(min_channels * size)
            target = max(left, min(max(1, floor), size))
            if target < size:
                target = min(size, math.ceil(target / divisor) * divisor)
            changed |= restore(ids, target)
        for ids in others:
            changed |= restore(ids, 1)
        for group in ties:
            most = max(kept_count(ids, keep) for ids in group)
            for ids in group:
                changed |= restore(ids, min(most, len(ids)))
    return keep


def _distinct(vectors: Iterable[Tensor], empty: Tensor | None = None) -> list[Tensor]:
    """Drops vectors that occur before, those that no selection can change, and those of empty layers."""
    seen: dict[bytes, Tensor] = {}
    for ids in vectors:
        gone = empty is not None and bool((ids >= 0).all()) and bool(empty[ids].all())
        if bool((ids >= 0).any()) and not gone:
            seen.setdefault(ids.numpy().tobytes(), ids)
    return list(seen.values())
