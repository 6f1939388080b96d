"""Finds the form of a compact model that computes what the masked model computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.surgery.rewrite import Programs, build
from lightning_prune.channels.surgery.widths import equal_widths, expressible
from lightning_prune.channels.verify.compare import Proof, check_eager, check_trains, graph_runner
from lightning_prune.channels.verify.locate import locate, name_layer
from lightning_prune.errors import PlanError, SurgeryError
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import plans_of

Check = Callable[[Tensor], str]
"""Says why a model cannot run without some channel groups, bool of shape (groups,); "" if it can."""

Planner = Callable[[list[tuple[Tensor, ...]], str], tuple[Tensor, PruningPlan]]


def prove(
    model: nn.Module, graph: ChannelGraph, plan_for: Planner, example_input: Any, form: str, verify: bool
) -> tuple[Tensor, PruningPlan, Proof | None, tuple[str, ...], Programs | None]:
    """Finds a form of the compact model that computes what the masked model computes."""
    failure = ""
    if form != "graph":
        equal = equal_widths(model, graph)
        tried: set[tuple[type[nn.Module], bool]] = set()
        proof: Proof | None = None
        while True:
            try:
                chosen, plan = plan_for(equal, "eager")
            except PlanError as error:  # the nearest plan that this code can express removes nothing
                failure = failure or str(error)
                break
            if not verify:
                return chosen, plan, None, (), None
            try:
                proof = check_eager(model, plan, example_input)
                if proof.equal or graph.approximations:
                    break
                path = locate(model, plan, example_input)
                failure = f"the model's own code differs first at {name_layer(model, path)}: {proof}"
            except Exception as error:
                path = locate(model, plan, example_input)
                failure = f"the model's own code fails at {name_layer(model, path)}: {type(error).__name__}: {error}"
            # The nearest plan that this code can express: equal widths first, then all of them.
            more = [] if path is None else _nearer(graph, model, path, tried)
            proof = None
            if not more:
                break
            equal = equal + more
        if proof is not None:
            return chosen, plan, conclusive(proof), (), None
    if form == "eager":
        plan_for(equal, "eager")  # raises if the reason is that nothing is left to remove
        raise SurgeryError(f"{failure}. The model is unchanged; form='graph' may be able to express it")
    if any(earlier.empty for earlier in plans_of(model).values()):
        raise SurgeryError(
            f"{failure or 'form=graph was asked for'}; and no rewritten graph runs a model with removed branches. "
            "The model is unchanged; undo its plan first, with lightning_prune.plan_of(model).undo(model)"
        )
    chosen, plan = plan_for([], "graph")
    try:
        programs = build(model, example_input, plan, graph.options)
        graph_proof = check_eager(model, plan, example_input, graph_runner(programs)) if verify else None
    except Exception as error:
        raise SurgeryError(f"the rewritten graph does not run: {type(error).__name__}: {error}. {failure}. "
                           "The model is unchanged") from error  # fmt: skip
    if graph_proof is not None and not graph_proof.equal and not graph.approximations:
        raise SurgeryError(
            f"the rewritten graph does not compute what the masked model computes: {graph_proof}. "
            f"{failure}. The model is unchanged"
        )
    note = f"the compact model runs as a rewritten graph: {failure or 'form=graph was asked for'}"
    return chosen, plan, graph_proof and conclusive(graph_proof), (note,), programs


def runs_without(
    model: nn.Module, graph: ChannelGraph, plan_for: Callable[[Tensor], PruningPlan], example_input: Any, train: bool
) -> Check:
    """A check of whether a model's own code runs without some channel groups, in eval mode and perhaps in train mode.

    Args:
        plan_for: makes the plan of the groups to keep.
        train: whether to run it in train mode, in which norms may wait for other processes.
    """

    def check(empty: Tensor) -> str:
        plan = plan_for(~empty)
        try:
            proof = check_eager(model, plan, example_input)
            if train:
                check_trains(model, plan, example_input)
        except Exception as error:
            place = name_layer(model, locate(model, plan, example_input))
            first = (str(error).strip().splitlines() or [""])[0]
            return f"without channels the model's own code fails at {place}: {type(error).__name__}: {first}"
        return "" if proof.equal or graph.approximations else f"the model's own code computes something else: {proof}"

    return check


def _nearer(
    graph: ChannelGraph, model: nn.Module, path: str, tried: set[tuple[type[nn.Module], bool]]
) -> list[tuple[Tensor, ...]]:
    """The next thing to try for the class of module that failed; empty when there is nothing left."""
    kind = type(model.get_submodule(path))
    for keep_all in (False, True):
        if (kind, keep_all) not in tried:
            tried.add((kind, keep_all))
            if more := expressible(graph, model, path, keep_all):
                return more
    return []


def conclusive(proof: Proof) -> Proof:
    """Raises SurgeryError for a check that would have passed whatever was removed."""
    if proof.effect <= 10 * proof.tolerance and not proof.effect > 10 * proof.difference:
        raise SurgeryError(
            f"the check proves nothing: masking the removed channels changes the output by {proof.effect:.1e} only. "
            "The model is unchanged; pass verify=False if its output does not depend on these channels"
        )
    return proof
