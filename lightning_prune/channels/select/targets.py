"""What a request says about the classes: which to keep, and of which a whole layer may go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.repair import as_mask, group_scores, keep_by_ratio, keep_from_lists, resolve, votes
from lightning_prune.errors import PlanError


def choose(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor] | None,
    keep: Mapping[str, Any] | None,
    ratio: float | None,
    threshold: float | Mapping[str, float] | None,
    reduce: str,
    none: bool,
) -> tuple[Tensor, Tensor]:
    """Returns (classes to keep, score of each class). none: whether a list may be empty."""
    if scores is None:
        return keep_from_lists(graph, keep or {}, none=none), torch.zeros(graph.size)
    score, number = group_scores(graph, scores, reduce)
    if ratio is not None:
        return keep_by_ratio(score, number, ratio), score
    if threshold is None:
        return torch.ones(graph.size, dtype=torch.bool), score
    masks = {}
    for name, given in scores.items():
        full, _ = resolve(graph, name)
        limit = threshold.get(name) if isinstance(threshold, Mapping) else threshold
        if limit is None:
            raise PlanError(f"threshold has no entry for {name!r}, which has scores")
        masks[full] = torch.as_tensor(given).detach().cpu() >= limit
    return votes(graph, masks), score


def dead_groups(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor] | None,
    wanted: Tensor,
    ratio: float | None,
    macs: float | None,
) -> Tensor:
    """The classes of which a whole layer may go. An order alone says of no layer that it is dead: zeros do."""
    if scores is None or (ratio is None and macs is None):
        return ~wanted
    zero = ~votes(graph, {resolve(graph, n)[0]: torch.as_tensor(s).detach().cpu() != 0 for n, s in scores.items()})
    return zero if ratio is None else zero & ~wanted


def listed(graph: ChannelGraph, keep: Mapping[str, Any]) -> Tensor:
    """The classes that keep lists name as staying, bool of shape (classes,): they do not go with a branch either."""
    out = torch.zeros(graph.size, dtype=torch.bool)
    for name, kept in keep.items():
        _, ids = resolve(graph, name)
        out[ids[as_mask(name, kept, len(ids), none=True) & (ids >= 0)]] = True
    return out
