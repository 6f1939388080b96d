"""Which classes to keep: from keep lists, scores or thresholds, repaired to floors, alignment and equal splits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.keep import kept_count
from lightning_prune.channels.select.budget import meet_budget
from lightning_prune.errors import PlanError


def resolve(graph: ChannelGraph, name: str) -> tuple[str, Tensor]:
    """Returns (tensor name, class ids of its dim 0) for a tensor's name or a module's path."""
    full = next((n for n in (name, f"{name}.weight") if n in graph.axes), None)
    single = next((n for n in (name, f"{name}.weight") if n in graph.shapes), None)
    if full is None and single is not None:
        raise PlanError(f"{single} of shape {graph.shapes[single]} has no channel that may go; leave it out")
    if full is None:
        close = [n for n in graph.axes if name.split(".")[0] in n][:3]
        raise PlanError(f"unknown tensor or module {name!r}; names are those of the state dict, such as {close}")
    ids = graph.axes[full].get(0)
    if ids is None:
        raise PlanError(f"{full} of shape {graph.shapes[full]} has no channels in dim 0; nothing can be removed there")
    return full, ids


def as_mask(name: str, kept: Any, size: int, *, none: bool = False) -> Tensor:
    """Turns a bool mask, or a collection of indices, into a bool mask of shape (size,).

    Args:
        none: whether nothing may be kept.

    Raises:
        PlanError: wrong length, index out of range, or nothing is kept.
    """
    given = torch.as_tensor(kept).cpu()
    if given.dtype == torch.bool:
        if given.shape != (size,):
            raise PlanError(f"keep[{name!r}] is a mask of shape {tuple(given.shape)}, expected ({size},)")
        mask = given
    else:
        if given.numel() and (given.is_floating_point() or int(given.min()) < 0 or int(given.max()) >= size):
            raise PlanError(
                f"keep[{name!r}] has {given.flatten().tolist()[:8]}.., expected indices from 0 to {size - 1}"
            )
        mask = torch.zeros(size, dtype=torch.bool)
        mask[given.long().flatten()] = True
    if not none and not bool(mask.any()):
        raise PlanError(f"keep[{name!r}] would empty the layer; keep at least one of its {size} channels")
    return mask


def votes(graph: ChannelGraph, masks: Mapping[str, Tensor]) -> Tensor:
    """A class goes if every member that was asked about says so; what was not asked about stays.

    Args:
        masks: {tensor name: bool mask of what to keep along dim 0}

    Returns:
        bool of shape (classes,): what to keep.
    """
    asked, stay = torch.zeros(graph.size, dtype=torch.bool), torch.zeros(graph.size, dtype=torch.bool)
    for name, mask in masks.items():
        ids = graph.axes[name][0]
        free = ids >= 0
        asked[ids[free]] = True
        stay[ids[free & mask]] = True
    return ~asked | stay


def keep_from_lists(graph: ChannelGraph, keep: Mapping[str, Any], *, none: bool = False) -> Tensor:
    """Classes to keep, from {tensor name or module path: mask or indices to keep along dim 0}.

    Args:
        none: whether a list may be empty; `check_emptied` then says which layers may.
    """
    masks = {}
    for name, kept in keep.items():
        full, ids = resolve(graph, name)
        masks[full] = as_mask(name, kept, len(ids), none=none and bool((ids >= 0).all()))
    return votes(graph, masks)


def check_emptied(graph: ChannelGraph, wanted: Tensor, empty: Tensor, refused: Mapping[str, str]) -> None:
    """Raises PlanError if a choice leaves no channel in a layer that is not part of a branch that goes whole.

    Args:
        wanted: bool of shape (classes,), what is kept.
        empty: bool of shape (classes,), what goes whole.
        refused: {tensor: why it may not}.
    """
    for name, dim, ids in graph.each():
        if kept_count(ids, wanted) == 0 and not bool(empty[ids].all()):
            known = (why for n, why in refused.items() if any(torch.equal(ids, v) for v in graph.axes[n].values()))
            why = "".join(f": {reason}" for reason in known)
            raise PlanError(f"these keep lists would empty dim {dim} of {name}{why}; keep at least one channel there")


def group_scores(graph: ChannelGraph, scores: Mapping[str, Tensor], reduce: str = "mean") -> tuple[Tensor, Tensor]:
    """Combines the scores of a class's members.

    Returns:
        (score, number of scored channels), each of shape (classes,); a class without any score has score +inf.
    """
    modes = {"mean": "mean", "max": "amax", "min": "amin", "sum": "sum"}
    if reduce not in modes:
        raise PlanError(f"reduce={reduce!r}: expected one of {sorted(modes)}")
    total = torch.full((graph.size,), math.inf, dtype=torch.float64)
    number = torch.zeros(graph.size, dtype=torch.int64)
    for name, given in scores.items():
        full, ids = resolve(graph, name)
        score = torch.as_tensor(given).detach().double().cpu()
        if score.shape != ids.shape or bool(score.isnan().any()):
            raise PlanError(
                f"scores[{name!r}] has shape {tuple(score.shape)}, expected ({len(ids)},) without NaN, "
                f"one score for each channel of {full}"
            )
        free = ids >= 0
        chosen = ids[free]
        fresh = torch.zeros(graph.size, dtype=torch.float64)
        fresh.scatter_reduce_(0, chosen, score[free], modes[reduce], include_self=False)
        count = torch.bincount(chosen, minlength=graph.size)
        both, new = (count > 0) & (number > 0), (count > 0) & (number == 0)
        total[new] = fresh[new]
        if reduce == "mean":
            total[both] = (total[both] * number[both] + fresh[both] * count[both]) / (number + count)[both]
        else:
            pair = torch.stack([total[both], fresh[both]])
            total[both] = {"max": pair.amax(0), "min": pair.amin(0), "sum": pair.sum(0)}[reduce]
        number += count
    return total, number


def keep_by_ratio(score: Tensor, number: Tensor, ratio: float) -> Tensor:
    """Removes the classes of lowest score until `ratio` of all scored channels are gone."""
    if not 0.0 < ratio < 1.0:
        raise PlanError(f"ratio={ratio}: expected a share between 0 and 1, such as 0.3")
    order = score.argsort()
    order = order[number[order] > 0]
    gone = number[order].cumsum(0)
    budget = int(ratio * int(number.sum()))
    keep = torch.ones_like(number, dtype=torch.bool)
    keep[order[gone <= budget]] = False
    return keep


def keep_by_macs(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    share: float,
    reduce: str,
    repaired: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Removes the classes of lowest score until the repaired model costs at most `share` of its MACs.

    Returns:
        (classes to keep, score of each class)
    """
    if not 0.0 < share < 1.0:
        raise PlanError(f"macs={share}: expected the share of multiply-accumulates that may stay, such as 0.5")
    score, number = group_scores(graph, scores, reduce)
    cost = ChannelCost.of(graph)
    order = score.argsort()
    order = order[number[order] > 0]
    try:
        total = cost.macs()
        keep = meet_budget(order, graph.size, lambda k: cost.macs(k) / total, share, lambda k: repaired(k, score))
    except PlanError as error:
        raise PlanError(
            f"macs={share}: of the MACs, {error} (floors, alignment, frozen channels); ask for more, or give "
            "more layers scores"
        ) from error
    return keep, score


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
    """Restores the best of the removed classes until every constraint holds. Nothing more is ever removed.

    Args:
        keep: bool of shape (classes,).
        score: float of shape (classes,); the best of the removed classes come back first.
        divisor: channel counts (dim 0 of every tensor that is cut) become multiples of it, or stay whole.
        min_channels: at least so many channels stay in every layer; a float is a share of the layer's channels.
        equal: groups of class-id vectors whose kept counts must be equal.
        empty: bool of shape (classes,), what goes whole: a layer of such classes alone has no floor.

    Returns:
        bool of shape (classes,).
    """
    if divisor < 1:
        raise PlanError(f"divisor={divisor}: expected a positive number, such as 8")
    if isinstance(min_channels, float) and not 0 <= min_channels <= 1:
        raise PlanError(f"min_channels={min_channels}: expected a count (int) or a share from 0 to 1 (float)")
    keep = keep.clone()
    layers = _distinct((ids for _, dim, ids in graph.each() if dim == 0), empty)
    others = _distinct([*(ids for _, dim, ids in graph.each() if dim > 0), *(c.ids for c in graph.counts)], empty)
    groups = [tuple(g) for g in equal]

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
        for group in groups:
            most = max(kept_count(ids, keep) for ids in group)
            for ids in group:
                changed |= restore(ids, min(most, len(ids)))
    return keep


def _distinct(vectors: Iterable[Tensor], empty: Tensor | None = None) -> list[Tensor]:
    """Drops vectors that occur before, those that no choice can change, and those that go whole."""
    seen: dict[bytes, Tensor] = {}
    for ids in vectors:
        whole = empty is not None and bool((ids >= 0).all()) and bool(empty[ids].all())
        if bool((ids >= 0).any()) and not whole:
            seen.setdefault(ids.numpy().tobytes(), ids)
    return list(seen.values())
