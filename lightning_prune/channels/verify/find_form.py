"""Finds the form of a compact model that computes what the masked model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.surgery.rewrite import build, build_quiet
from lightning_prune.channels.surgery.widths import expressible
from lightning_prune.channels.verify.compare import (
    Proof,
    check_plan,
    check_trains,
    is_random,
    lost_gradients,
)
from lightning_prune.channels.verify.locate import locate, name_layer
from lightning_prune.channels.verify.runs import graph_runner, runs_in_training
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
    """Why a form does not do, and in which module."""

    text: str
    error: Exception | None = None
    path: str | None = None


def find_form(
    model: nn.Module, graph: ChannelGraph, plan_for: Planner[T], example_input: Any, form: str, verify: bool
) -> Found[T]:
    """Finds a form of the compact model that computes what the masked model computes.

    Args:
        form: "eager" for the model's own code, "graph" for its rewritten graph, "auto" for the first that works.
        verify: whether to compare at all; in train mode too, where the model does something else there.

    Raises:
        TargetError: the target is missed with the ties that the code needs, and the rewritten graph does not do.
        PlanError: nothing that can be removed is left.
        SurgeryError: no form computes the same.
    """
    failure = _Failure("form=graph was asked for")
    modes = (False, True) if verify and graph.traced.apart and runs_in_training(model, example_input) else (False,)
    if form != "graph":
        found = _eager(model, graph, plan_for, example_input, modes if verify else ())
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
    return _rewritten(model, graph, plan_for, example_input, modes if verify else (), failure)


def _eager(
    model: nn.Module, graph: ChannelGraph, plan_for: Planner[T], example_input: Any, modes: Sequence[bool]
) -> Found[T] | _Failure:
    """The model's own code; where it fails, with the nearest plan that it can express. modes: train mode or not."""
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
        if not modes:
            return Found(selected, plan, None)
        proof = _prove(model, graph, plan, example_input, modes)
        if isinstance(proof, Proof):
            return Found(selected, plan, effective(proof))
        failure, path = proof, proof.path
        # Equal widths first, then whole ones.
        more = [] if path is None else _nearer(graph, model, path, tried)
        if not more:
            return failure
        ties = [*ties, *more]


def _prove(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, example_input: Any, modes: Iterable[bool]
) -> Proof | _Failure:
    """Compares the model's own code, in train mode (True) or not."""
    found: Proof | None = None
    for training in modes:
        where = " in train mode" if training else ""
        try:
            proof = check_plan(model, plan, example_input, training=training, program=graph.program)
            lost = lost_gradients(model, plan, example_input) if training else []
        except Exception as error:
            reraise_ours(error)
            path = locate(model, plan, example_input, training)
            text = f"the model's own code fails{where} at {name_layer(model, path)}: {explain(error)}"
            return _Failure(text, error, path)
        if not proof.equal and not graph.approximations:
            _check_random(model, example_input)
            path = locate(model, plan, example_input, training)
            text = f"the model's own code differs{where} first at {name_layer(model, path)}: {proof}"
            return _Failure(text, None, path)
        if lost:
            return _Failure(f"no gradient reaches {', '.join(lost[:3])}{where}")
        found = proof if found is None else found.and_training(proof)
    assert found is not None
    return found


def _check_random(model: nn.Module, example_input: Any) -> None:
    """Raises SurgeryError if it is chance that makes the difference."""
    if is_random(model, example_input):
        raise SurgeryError(
            f"{type(model).__name__} is random: two runs in eval mode differ, so nothing can be proven of what it "
            "computes. Let it take the mean where it samples (in eval mode, or while it is pruned), or pass "
            "verify=False. The model is unchanged"
        )


def _rewritten(
    model: nn.Module, graph: ChannelGraph, plan_for: Planner[T], example_input: Any, modes: Sequence[bool],
    failure: _Failure,
) -> Found[T]:  # fmt: skip
    """The rewritten graph."""
    selected, plan = plan_for([], "graph")
    proof: Proof | None = None
    try:
        programs = build(model, example_input, plan, graph.options)
        for training in modes:
            code = build_quiet(model, example_input, plan, graph.options) if training else programs["forward", False]
            found = check_plan(model, plan, example_input, graph_runner(code), training=training)
            proof = found if proof is None else proof.and_training(found)
    except Exception as error:
        reraise_ours(error)
        more = f"The rewritten graph does not run: {explain(error)}"
        raise _error(failure, f"{more}. The model is unchanged") from error
    if proof is not None and not proof.equal and not graph.approximations:
        _check_random(model, example_input)
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
            proof = check_plan(model, plan, example_input, program=graph.program)
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
    if proof.vacuous:
        raise SurgeryError(
            f"the check proves nothing: masking the removed channels changes the output by {proof.effect:.1e} only. "
            "The model is unchanged; pass verify=False if its output does not depend on these channels"
        )
    return proof
