"""`prune_channels`: trace, choose, plan, prove, cut."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.channels.analysis.branches import Branches, RemovedBranches
from lightning_prune.channels.analysis.constants import constants as find_constants
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.keep import kept_mask
from lightning_prune.channels.select.repair import (
    check_emptied,
    keep_by_macs,
    repair,
)
from lightning_prune.channels.select.targets import choose, dead_groups, listed
from lightning_prune.channels.surgery.cut import apply_plan, check_optimizers, find_target
from lightning_prune.channels.surgery.empty import branch_names, empty_paths
from lightning_prune.channels.surgery.widths import attribute_changes, equal_widths
from lightning_prune.channels.verify.compare import Proof, check_same, graph_runner, run
from lightning_prune.channels.verify.find_form import prove, runs_without
from lightning_prune.errors import PlanError, SurgeryError
from lightning_prune.plan.cut import Cut
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.modes import split_input
from lightning_prune.support.tensors import state_tensors

log = logging.getLogger(__name__)

FORMS = ("auto", "eager", "graph")


@dataclass(frozen=True)
class Pruned:
    """What `prune_channels` did.

    Attributes:
        model: the compact model, the same object that was given.
        plan: what is left, as data; `plan.apply` does the same to another dense copy.
        graph: the channel graph of the dense model.
        keep: bool of shape (classes,): the classes that stayed.
        proof: the check of masked against sliced, or None if it was switched off.
        restored: removed channels that had to come back for floors, alignment or equal splits.
        notes: what the user should know (the form that was used, approximations).
    """

    model: nn.Module
    plan: PruningPlan
    graph: ChannelGraph
    keep: Tensor
    proof: Proof | None
    restored: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [str(self.plan), *(f"note: {note}" for note in self.notes)]
        if whole := branch_names(self.plan):
            lines.insert(1, f"without channels: {', '.join(whole)}")
        return "\n".join([*lines, str(self.proof)] if self.proof else lines)


def make_plan(model: nn.Module, graph: ChannelGraph, keep: Tensor, example_input: Any, form: str) -> PruningPlan:
    """Writes a choice of classes down as a plan."""
    cuts: dict[str, Cut] = {}
    for name, dims in graph.axes.items():
        kept = {}
        for dim, ids in dims.items():
            mask = kept_mask(ids, keep)
            if not bool(mask.all()):
                kept[dim] = tuple(mask.nonzero().flatten().tolist())
        if kept:
            cuts[name] = Cut(graph.shapes[name], kept)
    state = state_tensors(model)
    owners = {id(state[name]): name for name in cuts}
    for name, tensor in state.items():  # a tensor with two names is exported under one of them
        if id(tensor) in owners:
            cuts[name] = cuts[owners[id(tensor)]]
    args, kwargs = split_input(example_input)
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    inputs = tuple((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors)
    settings: dict[str, Any] = {"groups": graph.options.groups, "attention": graph.options.attention}
    if graph.options.allow_inexact:
        settings["allow_inexact"] = sorted(graph.options.allow_inexact)
    attributes = attribute_changes(model, graph, keep)
    return PruningPlan(cuts, attributes, form, inputs, settings, empty_paths(cuts))


def prune_channels(
    model: nn.Module,
    example_input: Any,
    scores: Mapping[str, Tensor] | None = None,
    keep: Mapping[str, Any] | None = None,
    *,
    ratio: float | None = None,
    threshold: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    reduce: str = "mean",
    divisor: int = 1,
    min_channels: int | float = 1,
    whole_branches: bool = False,
    groups: str = "tie",
    attention: str = "dims",
    allow_inexact: Collection[str] = (),
    constants: str = "drop",
    form: str = "auto",
    verify: bool = True,
    graph: ChannelGraph | None = None,
    optimizers: Iterable[Optimizer] = (),
    averaged: Iterable[nn.Module] = (),
) -> Pruned:
    """Removes channels from a model, in place, and proves on the spot that nothing else changed.

    Without `scores` and `keep` it removes exactly what is already dead, and the model computes the same function.

    Args:
        model: any module that `torch.export` can export.
        example_input: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        scores: {tensor name or module path: score of each channel in dim 0}; the higher, the more it stays.
            Needs one of `ratio`, `threshold` and `macs`.
        keep: {tensor name or module path: indices, or a bool mask, of what to keep along dim 0}. A class of tied
            channels goes only if every member that is named here goes.
        ratio: share of the scored channels to remove, lowest class score first.
        threshold: channels with a score below it go; one number, or one for each name in `scores`.
        macs: share of the multiply-accumulates that may stay; classes of lowest score go until the model, with floors,
            alignment and equal splits respected, costs no more than that.
        reduce: how the scores of tied channels combine for `ratio`: "mean", "max", "min" or "sum".
        divisor: channel counts of cut layers become multiples of it (8 suits most hardware).
        min_channels: channels that stay in every layer, as a count or (float) as a share; not in a branch that goes
            whole.
        whole_branches: if True, a layer may lose all of its channels where another path leads around it (a shortcut, a
            gate, a concatenation), and what only fed it or is constant without it goes too. That happens to layers that
            are dead; whose channels are all below the `threshold`, or have a score of exactly zero; or with an empty
            list in `keep` (what a list names stays). Without scores and keep it also happens to what only feeds norms
            of which every scale factor is zero, as in a fresh network that starts its branches at zero. Other layers,
            and all by default, keep a channel (an empty list is an error).
        groups, attention, allow_inexact: see `ChannelGraph.trace`.
        constants: a pruned channel with a shift emits a constant. "drop" removes it with the channel; "fold" adds it to
            the biases behind (scale factors of removed channels count as zero), exactly, or with a note where zero
            padding makes it inexact. Without scores and keep, "fold" also removes channels that are constant and can
            be folded exactly.
        form: "eager" keeps the model's own code, "graph" rewrites its graph, "auto" tries eager first.
        verify: whether to compare masked with sliced on a random batch before anything is changed. A branch that goes
            whole is tried in any case, in train mode too if this is True.
        graph: a channel graph of this very model, to save the tracing.
        optimizers, averaged: see `PruningPlan.apply`.

    Raises:
        TraceError: the model cannot be exported.
        PlanError: the request does not fit the model, or it would remove nothing.
        SurgeryError: no form of the compact model computes the same; the model is as it was.
    """
    if form not in FORMS:
        raise PlanError(f"form={form!r}: expected one of {FORMS}")
    if constants not in ("drop", "fold"):
        raise PlanError(f"constants={constants!r}: expected 'drop' or 'fold'")
    if scores is not None and keep is not None:
        raise PlanError("both scores and keep were given; expected at most one of them")
    given = {"ratio": ratio, "threshold": threshold, "macs": macs}
    chosen_by = [name for name, value in given.items() if value is not None]
    if scores is None and chosen_by:
        raise PlanError(f"{chosen_by[0]} needs scores: one tensor of scores for each layer, by name")
    if scores is not None and len(chosen_by) != 1:
        raise PlanError(f"scores need exactly one of ratio, threshold and macs, found {chosen_by or 'none'}")
    graph = graph or ChannelGraph.trace(
        model, example_input, groups=groups, attention=attention, allow_inexact=allow_inexact
    )
    optimizers, averaged = list(optimizers), list(averaged)
    lossless = scores is None and keep is None
    branches = Branches.of(model, graph, form) if whole_branches else None
    if lossless:
        found = find_constants(model, graph, example_input, fold=constants == "fold")
        dead = ~found.varying & (~found.nonzero | ~found.unfoldable if constants == "fold" else ~found.nonzero)
        silent = branches.silent() if branches else frozenset[str]()
        if branches is not None:
            dead |= branches.unused(silent)
        wanted, score = ~dead, torch.zeros(graph.size)
    else:
        wanted, score = choose(graph, scores, keep, ratio, threshold, reduce, none=branches is not None)
        dead, silent = dead_groups(graph, scores, wanted, ratio, macs), frozenset[str]()
    whole = RemovedBranches.none(graph.size)
    if branches is not None:
        made = partial(make_plan, model, graph, example_input=example_input, form="eager")
        runs = runs_without(model, graph, made, example_input, train=verify)
        stay = listed(graph, keep or {})
        whole = branches.removable(dead, stay=stay, constants=not lossless, silent=silent, check=runs)
    if keep is not None:
        check_emptied(graph, wanted, whole.empty | whole.floored, whole.refused)
    limits: dict[str, Any] = {"divisor": divisor, "min_channels": min_channels}
    if macs is not None:
        equal = [] if form == "graph" else equal_widths(model, graph)
        rules = {**limits, "equal": equal, "empty": whole.empty}
        wanted, score = keep_by_macs(
            graph, scores or {}, macs, reduce, lambda k, s: repair(graph, k & ~whole.empty, s, **rules)
        )

    def plan_for(equal: list[tuple[Tensor, ...]], form: str) -> tuple[Tensor, PruningPlan]:
        empty = whole.empty & (form == "eager")
        chosen = repair(graph, wanted & ~empty, score, equal=equal, empty=empty, **limits)
        if bool(chosen.all()):
            raise PlanError(nothing(graph, wanted))
        plan = make_plan(model, graph, chosen, example_input, form)
        check_optimizers(plan, find_target(plan, model), optimizers)
        return chosen, plan

    chosen, plan, proof, notes, programs = prove(model, graph, plan_for, example_input, form, verify)
    folds: dict[str, Tensor] = {}
    if constants == "fold":
        behind = find_constants(model, graph, example_input, fold=True, removed=~chosen, silence=not lossless)
        folds, inexact = behind.folds, behind.inexact
        if inexact:
            more = f", and in {len(inexact) - 1} more places" if len(inexact) > 1 else ""
            notes += (f"constants not folded exactly: {inexact[0]}{more}",)
    if verify and (lossless or folds):
        notes += _same(model, graph, plan, folds, example_input, programs, lossless)
    apply_plan(plan, model, optimizers, averaged, programs, folds)
    if plan.form == "graph" and bool(whole.empty.any()):
        notes += ("a rewritten graph keeps a channel of every layer, also of branches that could go whole",)
    notes += tuple(f"{name} keeps a channel of those that were to go: {why}" for name, why in whole.refused.items())
    notes += graph.approximations
    for note in notes:
        log.warning(note)
    return Pruned(model, plan, graph, chosen, proof, int((chosen & ~wanted).sum()), notes)


def _same(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, folds: dict[str, Tensor], example_input: Any,
    programs: Any, lossless: bool,
) -> tuple[str, ...]:  # fmt: skip
    """Compares with the model as it is. Only a lossless request has to come out equal."""
    runner = run if programs is None else graph_runner(programs)
    norms = [f"{path}.weight" for path in graph.norms if f"{path}.weight" in plan.cuts]
    zeroed = [] if lossless else [name for name in norms if 0 in plan.cuts[name].kept]
    same = check_same(model, plan, folds, example_input, runner, zeroed)
    # A folded constant is stored in the model's own dtype, so it can be no more exact than that.
    if lossless and not (same.equal or (folds and same.difference < 1e-6)):
        raise SurgeryError(
            f"removing dead channels changes the output by {same.difference:.1e} "
            f"(tolerance {same.tolerance:.0e}). The model is unchanged; please report this model"
        )
    if lossless:
        return ()
    return (
        f"with the constants folded, the output is within {same.difference:.1e} of the model with zero scale factors",
    )


def nothing(graph: ChannelGraph, wanted: Tensor) -> str:
    """Explains why a request removes nothing."""
    asked = int((~wanted).sum())
    total, frozen = graph.norm_channels()
    if asked:
        return (
            f"nothing would be removed: all {asked} classes that were asked for are needed by floors, alignment "
            "(divisor) or equal splits; ask for more, or lower divisor and min_channels"
        )
    return (
        f"nothing would be removed: no class of channels was asked for, or is dead, on every member. "
        f"{graph.size} classes may be removed; {frozen} of {total} BatchNorm channels are frozen "
        "(print the ChannelGraph for the reasons)"
    )
