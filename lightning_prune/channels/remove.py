"""`remove_channels`: from a selection to a smaller network: plan, verify, cut."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.channels.analysis.branches import RemovedBranches
from lightning_prune.channels.analysis.constants import check_folded, fold_constants
from lightning_prune.channels.analysis.means import fold_means
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.requests import nothing
from lightning_prune.channels.select.selection import Selection
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.taps import INPUT
from lightning_prune.channels.surgery.cut import apply_plan
from lightning_prune.channels.surgery.empty import branch_names
from lightning_prune.channels.surgery.widths import make_plan
from lightning_prune.channels.verify.compare import Proof
from lightning_prune.channels.verify.find_form import Ties, find_form, runs_without
from lightning_prune.channels.verify.whole import Whole
from lightning_prune.errors import PlanError, TargetError
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.table import Shown, Table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pruned(Shown):
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

    def table(self) -> Table:
        """The costs before and after; the plan above, notes and proof below."""
        above = [str(self.plan)]
        if gone := branch_names(self.plan):
            above.append(f"without channels: {', '.join(gone)}")
        rows = [
            (name, f"{old:,}", f"{new:,}", f"{100 * new / max(old, 1):.1f} %")
            for name, (old, new) in (("MACs", self.macs), ("parameters", self.params))
        ]
        below = [*(f"note: {note}" for note in self.notes), *([str(self.proof)] if self.proof else [])]
        return Table(("", "before", "after", "left"), rows, above, below)


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
    means: Mapping[str, Tensor] | None = None,
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
        means: {name of one of the units' taps: means of the channels there}, added to the biases behind for what goes,
            in place of the constants alone.

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
    if means:
        inputs = {name.removeprefix(INPUT): mean for name, mean in means.items() if name.startswith(INPUT)}
        folds, more = fold_means(network, graph, chosen.keep, inputs)
        notes += more
    elif constants == "fold":
        folds, more = fold_constants(network, graph, chosen.keep, example_input, silence=not request.lossless)
        notes += more
    if verify and not means and (request.lossless or folds):
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
