"""Finds the form of a compact model that computes what the masked model computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.surgery.rewrite import build
from lightning_prune.channels.surgery.widths import expressible
from lightning_prune.channels.verify.compare import Proof, check_plan, check_trains, graph_runner
from lightning_prune.channels.verify.locate import locate, name_layer
from lightning_prune.errors import ChannelError, PlanError, SurgeryError, TargetError
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import plans_of
from lightning_prune.support.faults import explain, reraise_ours

Check = Callable[[Tensor], str]
"""Says why a model cannot run without some channel groups, bool of shape (groups,); "" if it can."""

T = TypeVar("T")
Ties = Sequence[tuple[Tensor, ...]]
"""Vectors of groups whose kept counts must be equal."""
Planner = Callable[[Ties, str], tuple[T, PruningPlan]]
"""Given widths that must be equal and a form, (what was selected, its plan); PlanError if there is no such plan."""


@dataclass(frozen=True)
class Found(Generic[T]):
    """A form that works: what was `selected` for it, its plan and proof, notes for the user, programs of a graph."""

    selected: T
    plan: PruningPlan
    proof: Proof | None
    notes: tuple[str, ...] = ()
    programs: Any = None


class _Failure(NamedTuple):
    """Why a form does not do."""

    text: str
    error: Exception | None = None


def find_form(
    model: nn.Module, graph: ChannelGraph, plan_for: Planner[T], example_input: Any, form: str, verify: bool
) -> Found[T]:
    """Finds a form of the compact model that computes what the masked model computes.

    Args:
        form: "eager" for the model's own code, "graph" for its rewritten graph, "auto" for the first that works.
        verify: whether to compare at all.

    Raises:
        TargetError: the target is missed with the ties that the code needs, and the rewritten graph does not do.
        PlanError: nothing that can be removed is left.
        SurgeryError: no form computes the same.
    """
    failure = _Failure("form=graph was asked for")
    if form != "graph":
        found = _eager(model, graph, plan_for, example_input, verify)
        if isinstance(found, Found):
            return found
        failure = found
    if form == "eager":
        raise _error(failure, "The model is unchanged; form='graph' may be able to express it", PlanError)
    if any(earlier.empty for earlier in plans_of(model).values()):
        raise _error(
            failure,
            "No rewritten graph runs a model whose branches were removed. The model is unchanged; undo its plan first, "
            "with plan_of(model).undo(model)",
        )
    return _rewritten(model, graph, plan_for, example_input, verify, failure)


def _eager(
    model: nn.Module, graph: ChannelGraph, plan_for: Planner[T], example_input: Any, verify: bool
) -> Found[T] | _Failure:
    """The model's own code; where it fails, with the nearest plan that it can express."""
    ties: Ties = []
    tried: set[tuple[type[nn.Module], bool]] = set()
    failure: _Failure | None = None
    while True:
        try:
            selected, plan = plan_for(ties, "eager")
        except PlanError as error:
            if failure is None:
                return _Failure(str(error), error)
            error.__cause__ = failure.error
            return _Failure(f"{failure.text}; with the {len(ties)} ties that this code needs, {error}", error)
        if not verify:
            return Found(selected, plan, None)
        try:
            proof = check_plan(model, plan, example_input)
        except Exception as error:
            reraise_ours(error)
            path = locate(model, plan, example_input)
            failure = _Failure(f"the model's own code fails at {name_layer(model, path)}: {explain(error)}", error)
        else:
            if proof.equal or graph.approximations:
                return Found(selected, plan, effective(proof))
            path = locate(model, plan, example_input)
            failure = _Failure(f"the model's own code differs first at {name_layer(model, path)}: {proof}")
        # Equal widths first, then whole ones.
        more = [] if path is None else _nearer(graph, model, path, tried)
        if not more:
            return failure
        ties = [*ties, *more]


def _rewritten(
    model: nn.Module, graph: ChannelGraph, plan_for: Planner[T], example_input: Any, verify: bool, failure: _Failure
) -> Found[T]:
    """The rewritten graph."""
    selected, plan = plan_for([], "graph")
    try:
        programs = build(model, example_input, plan, graph.options)
        proof = check_plan(model, plan, example_input, graph_runner(programs)) if verify else None
    except Exception as error:
        reraise_ours(error)
        more = f"The rewritten graph does not run: {explain(error)}"
        raise _error(failure, f"{more}. The model is unchanged") from error
    if proof is not None and not proof.equal and not graph.approximations:
        more = f"The rewritten graph does not compute what the masked model computes: {proof}"
        raise _error(failure, f"{more}. The model is unchanged")
    note = f"the compact model runs as a rewritten graph: {failure.text}"
    return Found(selected, plan, proof and effective(proof), (note,), programs)


def _error(failure: _Failure, then: str, refused: type[PlanError] = TargetError) -> ChannelError:
    """The exception for a failure, with what was raised as its cause, which is also its kind if it is ``refused``."""
    kind = type(failure.error) if isinstance(failure.error, refused) else SurgeryError
    error = kind(f"{failure.text}. {then}")
    error.__cause__ = failure.error
    return error


def runs_without(
    model: nn.Module, graph: ChannelGraph, plan_for: Callable[[Tensor], PruningPlan], example_input: Any, train: bool
) -> Callable[[Tensor], str]:
    """A check of whether a model's own code runs without some groups, in eval mode and, if `train`, in train mode.

    `plan_for` makes the plan of the groups to keep. In train mode norms may wait for other processes.
    """

    def check(empty: Tensor) -> str:
        plan = plan_for(~empty)
        try:
            proof = check_plan(model, plan, example_input)
            if train:
                check_trains(model, plan, example_input)
        except Exception as error:
            reraise_ours(error)
            place = name_layer(model, locate(model, plan, example_input))
            return f"without channels the model's own code fails at {place}: {explain(error)}"
        return "" if proof.equal or graph.approximations else f"the model's own code computes something else: {proof}"

    return check


def _nearer(graph: ChannelGraph, model: nn.Module, path: str, tried: set[tuple[type[nn.Module], bool]]) -> Ties:
    """The next thing to try for the class of module that failed; empty when there is nothing left."""
    kind = type(model.get_submodule(path))
    for whole in (False, True):
        if (kind, whole) not in tried:
            tried.add((kind, whole))
            if more := expressible(graph, model, path, whole):
                return more
    return []


def effective(proof: Proof) -> Proof:
    """The proof, if masking the removed channels changed anything; SurgeryError otherwise."""
    if proof.effect <= 10 * proof.tolerance and not proof.effect > 10 * proof.difference:
        raise SurgeryError(
            f"the check proves nothing: masking the removed channels changes the output by {proof.effect:.1e} only. "
            "The model is unchanged; pass verify=False if its output does not depend on these channels"
        )
    return proof
