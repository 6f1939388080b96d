"""`prune_channels`: trace, select, plan, verify, cut."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.channels.analysis.branches import RemovedBranches
from lightning_prune.channels.analysis.constants import check_folded, fold_constants
from lightning_prune.channels.analysis.constants import constants as find_constants
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.requests import (
    check_arguments,
    check_emptied,
    from_lists,
    from_scores,
    lossless,
    nothing,
)
from lightning_prune.channels.select.selection import Selection
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.surgery.cut import apply_plan
from lightning_prune.channels.surgery.empty import branch_names
from lightning_prune.channels.surgery.widths import make_plan
from lightning_prune.channels.verify.compare import Proof
from lightning_prune.channels.verify.find_form import Ties, find_form, runs_without
from lightning_prune.channels.verify.whole import Whole
from lightning_prune.errors import PlanError, TargetError
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.modes import join_input

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pruned:
    """What `prune_channels` did. Printed, it tells the cost before and after, and the notes.

    Attributes:
        model: the compact model, the same object that was given.
        plan: what is left, as data; `plan.apply` does the same to another dense copy.
        graph: the channel graph of the dense model.
        selection: the channel groups that stayed, and what is left by them.
        proof: the check of masked against sliced, or None if it was switched off.
        restored: removed groups that had to come back for floors, alignment or equal widths.
        macs, params: (before, after) of one sample.
        notes: what the user should know (the form that was used, approximations, a target that was missed).
    """

    model: nn.Module
    plan: PruningPlan
    graph: ChannelGraph
    selection: Selection
    proof: Proof | None
    restored: int
    macs: tuple[int, int]
    params: tuple[int, int]
    notes: tuple[str, ...]

    @property
    def keep(self) -> Tensor:
        """The groups that stayed, bool [groups]."""
        return self.selection.keep

    def __str__(self) -> str:
        costs = (("MACs", self.macs), ("parameters", self.params))
        lines = [
            str(self.plan),
            ", ".join(f"{name} {old:,} -> {new:,} ({100 * new / max(old, 1):.1f} %)" for name, (old, new) in costs),
            *(f"note: {note}" for note in self.notes),
        ]
        if gone := branch_names(self.plan):
            lines.insert(1, f"without channels: {', '.join(gone)}")
        return "\n".join([*lines, str(self.proof)] if self.proof else lines)


def prune_channels(
    model: nn.Module,
    example_input: Any,
    scores: Mapping[str, Tensor] | None = None,
    keep: Mapping[str, Any] | None = None,
    *,
    ratio: float | None = None,
    threshold: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    params: float | None = None,
    channels: float | None = None,
    reduce: str = "mean",
    divisor: int = 1,
    min_channels: int | float = 1,
    remove_branches: bool = False,
    groups: str = "tie",
    attention: str = "dims",
    allow_inexact: Collection[str] = (),
    constants: str = "drop",
    form: str = "auto",
    verify: bool = True,
    graph: ChannelGraph | None = None,
    network: str | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    optimizers: Iterable[Optimizer] = (),
    averaged: Iterable[nn.Module] = (),
) -> Pruned:
    """Removes channels from a model, in place, and proves on the spot that nothing else changed.

    Without `scores` and `keep` it removes exactly what is already dead, and the model computes the same function.

    Args:
        model: any module that `torch.export` can export, or that holds one (see `network`).
        example_input: the one argument, a tuple of positional arguments, or a dict of keyword arguments.
        scores: {tensor name or module path: score of each channel in dim 0}; the higher, the more it stays.
            Needs one of `ratio`, `threshold`, `macs`, `params` and `channels`.
        keep: {tensor name or module path: bool mask or indices of the channels in dim 0 to keep}. A channel goes if
            every tensor it is tied to and that is listed here lets it go.
        ratio: share of the scored channels to remove, over all layers.
        threshold: channels below it go; a number, or one for each name in `scores`.
        macs: share of the multiply-accumulates that may stay: the lowest scores go until the model, floors, alignment
            and equal widths respected, costs no more than that.
        params: the same for parameters.
        channels: the same for channels, of those that may be removed.
        reduce: how the scores of tied channels combine: "mean", "max", "min" or "sum".
        divisor: channel counts of cut layers become multiples of it (8 suits most hardware).
        min_channels: channels that stay in every layer, as a count or (float) as a share; not in a branch that is
            removed.
        remove_branches: if True, a layer may lose all of its channels where another path leads around it (a shortcut, a
            gate, a concatenation), and what only fed it or is constant without it goes too. That happens to layers all
            of whose BatchNorm scale factors are exactly zero, or with an empty list in `keep` (what a list names
            stays); a score of zero does not prove that. Without scores and keep it happens to all that is dead, and to
            what only feeds norms of which every scale factor is zero, as in a fresh network that starts its branches
            at zero. Other layers, and all by default, keep a channel (an empty list is an error).
        groups, attention, allow_inexact: see `ChannelGraph.trace`.
        constants: a pruned channel with a β emits a constant. "drop" removes it with the channel; "fold" adds it to
            the biases behind (scale factors of removed channels count as zero), exactly, or with a note where zero
            padding makes it inexact. Without scores and keep, "fold" also removes channels that are constant and can
            be folded exactly.
        form: "eager" keeps the model's own code, "graph" rewrites its graph, "auto" tries eager first, and takes the
            graph where the model's own code cannot meet the target.
        verify: whether to compare masked with sliced on a random batch before anything is changed; where the model does
            something else in train mode, there too. The removal of a branch is tried in any case, in train mode too if
            this is True.
        graph: a channel graph of this very model, or of the `network` in it, to save the tracing.
        network: path of the part of the model that is pruned, such as the backbone of a detector that cannot be traced
            as a whole. Names, costs and the plan are that part's; the whole is compared, too.
        example_kwargs: keyword arguments beside positional ones.
        optimizers, averaged: see `PruningPlan.apply`.

    Raises:
        TraceError: the model cannot be exported.
        TargetError: the target cannot be met.
        PlanError: the request does not fit the model, or it would remove nothing.
        SurgeryError: no form of the compact model computes the same; the model is as it was.
    """
    targets: dict[Any, float | None] = {"macs": macs, "params": params, "channels": channels}
    check_arguments(form, constants, scores, keep, {"ratio": ratio, "threshold": threshold, **targets})
    options: dict[str, Any] = {"groups": groups, "attention": attention, "allow_inexact": allow_inexact}
    whole, given, example_input = None, model, join_input(example_input, example_kwargs)
    if network is not None:
        whole = Whole.around(network, model, example_input)
        model, example_input = whole.network, whole.inside
        scores, keep = whole.names(scores), whole.names(keep)
    graph = graph or ChannelGraph.trace(model, example_input, **options)
    units = ChannelUnits.of(model, graph)
    selector = Selector(
        units, rule=None, budget=None, delta=0.0, min_channels=min_channels, divisor=divisor, form=form,
        remove_branches=remove_branches,
    )  # fmt: skip
    if scores is not None:
        target = next(((name, share) for name, share in targets.items() if share is not None), None)
        how: dict[str, Any] = {"ratio": ratio, "threshold": threshold, "target": target, "reduce": reduce}
        request = from_scores(graph, scores, units.proven_zero(), **how)
    elif keep is not None:
        request = from_lists(graph, keep, none=selector.branches is not None)
    else:
        found = find_constants(model, graph, example_input, fold=constants == "fold")
        request = lossless(found, selector.branches, fold=constants == "fold")
    selection = selector.meet(request)
    if keep is not None:
        check_emptied(graph, selection)
    pruned = remove_channels(
        model, example_input, selector, selection, constants=constants, form=form, verify=verify, whole=whole,
        remove_branches=remove_branches, optimizers=optimizers, averaged=averaged, on_miss="raise",
    )  # fmt: skip
    return replace(pruned, model=given)


def remove_channels(
    network: nn.Module,
    example_input: Any,
    selector: Selector,
    selection: Selection,
    *,
    constants: str = "fold",
    form: str = "auto",
    verify: bool = True,
    remove_branches: bool = True,
    optimizers: Iterable[Optimizer] = (),
    averaged: Iterable[nn.Module] = (),
    whole: Whole | None = None,
    on_miss: str = "warn",
) -> Pruned:
    """Removes what a selection lets go from a network, in place: plans, verifies, cuts.

    Where the network's own code needs more than the selection knows of (equal widths, a channel of a branch), the
    target is searched again with that.

    Args:
        network: the network of the selector, or a copy of it.
        example_input: as its graph was traced with.
        selector: what made the selection.
        selection: what stays.
        whole: the model around the network; with ``verify`` it is compared too.
        on_miss: what to do if the target is missed by more than 1 % all the same: "raise", or "warn" and note it.
        constants, form, verify, remove_branches, optimizers, averaged: see `prune_channels`.

    Raises:
        TargetError: the target cannot be met, and ``on_miss`` is "raise".
        PlanError: nothing would be removed.
        SurgeryError: no form of the compact network computes the same; the network is as it was.
    """
    graph, request = selector.units.graph, selection.request
    optimizers, averaged = list(optimizers), list(averaged)
    planned = partial(make_plan, network, graph, example_input=example_input)
    branches = RemovedBranches.none(graph.size)
    if remove_branches:
        runs = runs_without(network, graph, partial(planned, form="eager"), example_input, train=verify)
        branches = selector.removable(request, runs)
    first = selection
    if not torch.equal(branches.empty, first.empty) and form != "graph":
        selection = selector.meet(request, branches, strict=on_miss == "raise")

    def plan_for(ties: Ties, form: str, *, strict: bool = True) -> tuple[Selection, PruningPlan]:
        chosen = selection
        if ties or (form == "graph") != (selector.form == "graph") or (form == "graph" and bool(chosen.empty.any())):
            chosen = selector.meet(request, branches, ties=ties, form=form, strict=strict)
        if bool(chosen.keep.all()):
            raise PlanError(nothing(graph, request))
        plan = planned(chosen.keep, form=form)
        return chosen, plan

    missed: tuple[str, ...] = ()
    try:
        found = find_form(network, graph, plan_for, example_input, form, verify)
    except TargetError as error:
        if on_miss == "raise":
            raise
        found = find_form(network, graph, partial(plan_for, strict=False), example_input, form, verify)
        missed = (str(error),)
    chosen, notes = found.selected, missed + found.notes
    folds: dict[str, Tensor] = {}
    if constants == "fold":
        folds, more = fold_constants(network, graph, chosen.keep, example_input, silence=not request.lossless)
        notes += more
    if verify and (request.lossless or folds):
        options: dict[str, Any] = {"programs": found.programs, "lossless": request.lossless}
        notes += check_folded(network, graph, found.plan, folds, example_input, **options)
    if verify and whole is not None:
        notes += whole.check(found.plan, found.programs, exact=not graph.approximations)
    apply_plan(found.plan, network, optimizers, averaged, found.programs, folds)
    if found.plan.form == "graph" and bool(branches.empty.any()):
        notes += ("a rewritten graph keeps a channel of every layer, also of branches that could be removed",)
    notes += tuple(f"{name} keeps a channel of those that were to go: {why}" for name, why in branches.refused.items())
    notes += graph.notes + graph.approximations + tuple(filter(None, (chosen.missed(),)))
    for note in notes:
        log.warning(note)
    wanted = request.keep if request.target is None else first.keep
    cost = selector.cost
    macs, params = (cost.macs(), cost.macs(chosen.keep)), (cost.params(), cost.params(chosen.keep))
    restored = int((chosen.keep & ~wanted).sum())
    return Pruned(network, found.plan, graph, chosen, found.proof, restored, macs, params, notes)
