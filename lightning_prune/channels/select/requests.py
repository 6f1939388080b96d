"""From keep lists and scores, by the names of tensors or modules, to what is asked of each channel group."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_prune.channels.analysis.branches import Branches
from lightning_prune.channels.analysis.constants import Constants
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.modes import OUTPUT
from lightning_prune.channels.graph.vectors import kept_count
from lightning_prune.channels.rules.compute import SCALED
from lightning_prune.channels.rules.parts import STEPPED
from lightning_prune.channels.rules.reduce import COUNTED
from lightning_prune.channels.select.selection import Request, Resource, Selection
from lightning_prune.errors import PlanError

FORMS = ("auto", "eager", "graph")
REDUCE = {"mean": "mean", "max": "amax", "min": "amin", "sum": "sum"}


def channels_of(graph: ChannelGraph, name: str) -> Tensor:
    """The groups of dim 0 of a tensor, by its name or its module's path."""
    full = next((n for n in (name, f"{name}.weight") if n in graph.shapes), None)
    if full is None:
        close = [n for n in graph.axes if name.split(".")[0] in n][:3]
        raise PlanError(f"unknown tensor or module {name!r}; names are those of the state dict, such as {close}")
    if full not in graph.axes:
        raise PlanError(f"{full} of shape {graph.shapes[full]} has no channel that may go; leave it out")
    if 0 not in graph.axes[full]:
        raise PlanError(f"{full} of shape {graph.shapes[full]} has no channels in dim 0; nothing can be removed there")
    return graph.axes[full][0]


def as_mask(name: str, kept: Any, size: int, *, none: bool = False) -> Tensor:
    """A bool mask of shape (size,), from one or from indices; PlanError for others, or (unless `none`) without any."""
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


def votes(size: int, masks: list[tuple[Tensor, Tensor]]) -> Tensor:
    """What to keep, bool [groups]: a group goes if every member that was asked about says so.

    masks: (groups, bool mask of what to keep), each of the shape of a tensor's dim 0.
    """
    asked, stay = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    for ids, mask in masks:
        free = ids >= 0
        asked[ids[free]] = True
        stay[ids[free & mask]] = True
    return ~asked | stay


def group_scores(
    graph: ChannelGraph, scores: Mapping[str, Tensor], reduce: str = "mean", sites: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Combines the scores of a group's members, by "mean", "max", "min" or "sum".

    Args:
        scores: {tensor name or module path: score of each channel}; channels are those of dim 0.
        sites: {module path: groups of its channels}, where they are not those of its weight's dim 0.

    Returns:
        (score, number of scored channels), each of shape [groups]; a group without any score has score +inf.
    """
    if reduce not in REDUCE:
        raise PlanError(f"reduce={reduce!r}: expected one of {sorted(REDUCE)}")
    members, values = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.float64)]
    for name, given in scores.items():
        ids = sites[name] if sites and name in sites else channels_of(graph, name)
        score = torch.as_tensor(given).detach().double().cpu()
        if score.shape != ids.shape or bool(score.isnan().any()):
            raise PlanError(
                f"scores[{name!r}] has shape {tuple(score.shape)}, expected ({len(ids)},) without NaN, "
                "one score for each of its channels"
            )
        members.append(ids[ids >= 0])
        values.append(score[ids >= 0])
    chosen, total = torch.cat(members), torch.full((graph.size,), math.inf, dtype=torch.float64)
    total.scatter_reduce_(0, chosen, torch.cat(values), REDUCE[reduce], include_self=False)
    return total, torch.bincount(chosen, minlength=graph.size)


def from_lists(graph: ChannelGraph, keep: Mapping[str, Any], *, none: bool) -> Request:
    """What keep lists ask for: {tensor name or module path: mask or indices to keep along dim 0}.

    With `none` a list may be empty; `check_emptied` then says which layers may.
    """
    masks, stay = [], torch.zeros(graph.size, dtype=torch.bool)
    for name, kept in keep.items():
        ids = channels_of(graph, name)
        mask = as_mask(name, kept, len(ids), none=none and bool((ids >= 0).all()))
        masks.append((ids, mask))
        stay[ids[mask & (ids >= 0)]] = True
    wanted = votes(graph.size, masks)
    return Request(torch.zeros(graph.size, dtype=torch.float64), wanted, ~wanted, stay)


def from_scores(
    graph: ChannelGraph, scores: Mapping[str, Tensor], zero: Tensor, *, ratio: float | None = None,
    threshold: float | Mapping[str, float] | None = None, target: tuple[Resource, float] | None = None,
    reduce: str = "mean",
) -> Request:  # fmt: skip
    """What scores ask for, with one of a ratio, a threshold and a target.

    zero: bool [groups], what is proven to do nothing: its layers may be emptied. A score of zero proves nothing.
    """
    score, number = group_scores(graph, scores, reduce)
    wanted = torch.ones(graph.size, dtype=torch.bool)
    if ratio is not None:
        wanted = _without(score, number, ratio)
    elif threshold is not None:
        masks = []
        for name, given in scores.items():
            limit = threshold.get(name) if isinstance(threshold, Mapping) else threshold
            if limit is None:
                raise PlanError(f"threshold has no entry for {name!r}, which has scores")
            masks.append((channels_of(graph, name), torch.as_tensor(given).detach().cpu() >= limit))
        wanted = votes(graph.size, masks)
    return Request(score, wanted, zero & (number > 0), torch.zeros_like(wanted), target)


def from_importance(
    score: Tensor, number: Tensor, zero: Tensor, *, ratio: float | None = None, threshold: float | None = None,
    target: tuple[Resource, float] | None = None,
) -> Request:  # fmt: skip
    """As `from_scores`, of the importance of groups, float64 [groups] and +inf where there is none.

    number: channels of each group, [groups].
    """
    number = number.masked_fill(score == math.inf, 0)
    wanted = torch.ones(len(score), dtype=torch.bool)
    if ratio is not None:
        wanted = _without(score, number, ratio)
    elif threshold is not None:
        wanted = score >= threshold
    return Request(score, wanted, zero & (number > 0), torch.zeros_like(wanted), target)


def _without(score: Tensor, number: Tensor, ratio: float) -> Tensor:
    """What stays without the lowest scores, bool [groups], so that this share goes of the channels that are scored."""
    if not 0.0 < ratio < 1.0:
        raise PlanError(f"ratio={ratio}: expected a share between 0 and 1, such as 0.3")
    wanted = torch.ones(len(score), dtype=torch.bool)
    order = score.argsort()
    order = order[number[order] > 0]
    wanted[order[number[order].cumsum(0) <= int(ratio * int(number.sum()))]] = False
    return wanted


def lossless(found: Constants, branches: Branches | None, *, fold: bool) -> Request:
    """Asks for what is dead already and, with `fold`, for what is constant and can be folded exactly."""
    dead = ~found.varying & (~found.nonzero | ~found.unfoldable if fold else ~found.nonzero)
    shut = branches.silent() if branches is not None else frozenset[str]()
    if branches is not None:
        dead |= branches.unused(shut)
    nothing = torch.zeros_like(dead)
    return Request(nothing.double(), ~dead, dead, nothing, shut=shut, lossless=True)


def check_emptied(graph: ChannelGraph, selection: Selection) -> None:
    """Raises PlanError if keep lists leave no channel in a layer that is no part of a branch that is removed."""
    for name, dim, ids in graph.each():
        if kept_count(ids, selection.request.keep) == 0 and not bool(selection.empty[ids].all()):
            known = (
                why for n, why in selection.refused.items() if any(torch.equal(ids, v) for v in graph.axes[n].values())
            )
            why = "".join(f": {reason}" for reason in known)
            raise PlanError(f"these keep lists would empty dim {dim} of {name}{why}; keep at least one channel there")


def nothing(graph: ChannelGraph, request: Request) -> str:
    """Explains why a request removes nothing."""
    asked = int((~request.keep).sum())
    if asked:
        return (
            f"nothing would be removed: all {asked} channel groups that were asked for are needed by floors, alignment "
            "(divisor) or equal widths; ask for more, or lower divisor and min_channels"
        )
    return (
        f"nothing would be removed: no channel group was asked for, or is dead, on every member. "
        f"{graph.size} groups may be removed; {graph.told_frozen()}{_mostly(graph)} "
        "(print the ChannelGraph for all reasons)"
    )


def _mostly(graph: ChannelGraph) -> str:
    """The reason why most channels of weights stay that are not outputs, and the options that free some."""
    count: Counter[str] = Counter()
    reasons: set[str] = set()
    for name, dim, ids in graph.each():
        if dim == 0 and len(graph.shapes[name]) > 1:
            for identity, number in zip(*(v.tolist() for v in ids[ids < 0].unique(return_counts=True)), strict=True):
                reasons |= set(why := graph.frozen_reasons[-1 - identity])
                count[why[0]] += number
    del count[OUTPUT]
    if not count:
        return ""
    options = [
        option
        for option, off, ends in (
            ("norms='exact'", graph.options.norms == "keep", (COUNTED,)),
            ("attention='heads'", graph.options.attention == "dims", (STEPPED, SCALED)),
        )
        if off and any(reason.endswith(ends) for reason in reasons)
    ]
    freed = f"; {' and '.join(options)} may remove those too" if options else ""
    return f", mostly as {count.most_common(1)[0][0]}{freed}"


def check_arguments(form: str, constants: str, given: Mapping[str, Any], amounts: Mapping[str, Any]) -> None:
    """Raises PlanError for arguments of `prune_channels` that do not go together.

    given: score, scores and keep, by name. amounts: how much goes or stays, by name.
    """
    if form not in FORMS:
        raise PlanError(f"form={form!r}: expected one of {FORMS}")
    if constants not in ("drop", "fold"):
        raise PlanError(f"constants={constants!r}: expected 'drop' or 'fold'")
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) > 1:
        raise PlanError(f"{' and '.join(asked)} were given; expected at most one of them")
    stated = [name for name, value in amounts.items() if value is not None]
    if asked in ([], ["keep"]) and stated:
        raise PlanError(f"{stated[0]} needs scores: one tensor of scores for each layer, by name, or score='taylor'")
    if asked not in ([], ["keep"]) and len(stated) != 1:
        raise PlanError(f"{asked[0]} needs exactly one of {', '.join(amounts)}, found {stated or 'none'}")
    if asked == ["score"] and isinstance(amounts["threshold"], Mapping):
        raise PlanError("threshold by name needs scores by name; with score= it is one number")
    for name in ("macs", "params", "channels"):
        if amounts[name] is not None and not 0.0 < amounts[name] < 1.0:
            raise PlanError(f"{name}={amounts[name]}: expected the share that may stay, between 0 and 1, such as 0.5")
