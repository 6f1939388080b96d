"""Finds channels that are dead, and folds the constants that pruned channels leave behind, by a run on NaN.

The network's input is NaN, so whatever depends on the input becomes NaN, and what is left is constant whatever the
input: a BatchNorm whose scale factor is zero emits its β, and the activation of that. Where such a channel is
summed over, its value says whether it is dead (zero), foldable (its contribution is the same everywhere), or neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from lightning_prune.channels.analysis.taint import CONVOLUTIONS, NanRun
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.propagate import describe, operator_name
from lightning_prune.channels.trace.sites import Sum
from lightning_prune.channels.verify.compare import check_plan
from lightning_prune.channels.verify.runs import graph_runner, run
from lightning_prune.channels.verify.tensors import Later, Step, cast, fresh, reader
from lightning_prune.errors import SurgeryError
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.modes import mode, split_input


@dataclass(frozen=True)
class Constants:
    """What the channels of some groups contribute where they are summed over.

    Attributes:
        varying: bool of shape (groups,): the group depends on the input, or it could not be followed.
        nonzero: bool of shape (groups,): the group is constant, and its value enters a sum.
        unfoldable: bool of shape (groups,): folding the group is not exact.
        folds: {tensor name: what to add to it} for the groups that were asked about.
        inexact: where folding is not exact, with the reason.
    """

    varying: Tensor
    nonzero: Tensor
    unfoldable: Tensor
    folds: dict[str, Tensor]
    inexact: tuple[str, ...]


def constants(
    model: nn.Module, graph: ChannelGraph, example_input: Any, *, fold: bool = False, removed: Tensor | None = None,
    silence: bool = False,
) -> Constants:  # fmt: skip
    """Runs the model's graph on NaN and looks at every place where channels are summed over.

    With `fold`, computes what constants add to the biases behind them: those of the groups in `removed`, bool of shape
    (groups,), or all. With `silence`, the scale factors of `removed` count as zero, whatever they are.
    """
    run = partial(_constants, model, graph, example_input, fold, removed, silence)
    try:
        return run(torch.float64)
    except RuntimeError:  # a dtype is written into the graph
        return run(None)


def _constants(
    model: nn.Module, graph: ChannelGraph, example_input: Any, fold: bool, removed: Tensor | None, silence: bool,
    dtype: torch.dtype | None,
) -> Constants:  # fmt: skip
    size = graph.size
    varying, nonzero, unfoldable = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
    seen = torch.zeros(size, dtype=torch.bool)
    folds: dict[str, Tensor] = {}
    inexact: list[str] = []
    silent = [_silenced(graph, removed)] if removed is not None and silence else []
    names: dict[str, str] = {}
    by_node: dict[Node, list[Sum]] = {}
    for place in graph.sums:
        by_node.setdefault(place.node, []).append(place)

    def look(node: Node, bound: dict[str, Any]) -> None:
        for place in by_node[node]:
            value = _argument(bound, place.argument)
            flat = value.movedim(place.dim, 0).reshape(value.shape[place.dim], -1)
            unknown, zero = flat.isnan().any(1).cpu(), (flat == 0).all(1).cpu()
            other = _partner(bound, place)
            if other is not None:  # q x k: one zero factor is enough
                flat = other.reshape(other.shape[0], -1)
                hidden = (flat == 0).all(1).cpu()
                unknown, zero = unknown & ~hidden, zero | hidden
            free = place.ids >= 0
            seen[place.ids[free]] = True
            varying[place.ids[free & unknown]] = True
            present = free & ~unknown & ~zero
            nonzero[place.ids[present]] = True
            if fold and bool(present.any()):
                chosen = present if removed is None else present & removed[place.ids.clamp(min=0)]
                _fold(node, bound, place, chosen, names, unfoldable, folds, inexact)

    watch: dict[Node, Any] = {node: partial(look, node) for node in by_node}
    flat = pytree.tree_leaves(split_input(example_input))
    for program in filter(None, (graph.traced.program, graph.traced.training)):
        # Of the train graph only what the eval graph does not have is among the places.
        names |= program.states
        read = reader(model, *silent, cast(dtype), *([] if program is graph.program else [fresh]))
        feed: list[Any] = []
        for kind, what in program.sources():
            value = flat[what] if kind == "input" else what
            if kind == "input" and isinstance(value, Tensor) and value.is_floating_point():
                value = torch.full_like(value, torch.nan, dtype=dtype)
            feed.append(Later(read, what) if kind == "state" else value)
        with mode(model, False), torch.no_grad():
            NanRun(program.graph, watch).run(*feed)
    return Constants(varying | ~seen, nonzero, unfoldable, folds, tuple(dict.fromkeys(inexact)))


def _silenced(graph: ChannelGraph, removed: Tensor) -> Step:
    """Zero scale factors for the removed groups."""
    norms = {f"{path}.weight" for path in graph.norms}

    def step(name: str, tensor: Tensor) -> Tensor:
        ids = graph.scale_ids(name.removesuffix(".weight")) if name in norms else None
        if ids is None:
            return tensor
        return tensor.masked_fill(((ids >= 0) & removed[ids.clamp(min=0)]).to(tensor.device), 0)

    return step


def _argument(bound: dict[str, Any], name: str) -> Any:
    if name in bound:
        return bound[name]
    holder, _, position = name.partition(".")
    return bound[holder][int(position)]


def _partner(bound: dict[str, Any], place: Sum) -> Tensor | None:
    """The other factor of a product of two activations, with the summed dim first."""
    name = operator_name(place.node.target)
    if name == "scaled_dot_product_attention":
        other = bound["key" if place.argument == "query" else "query"]
        return other.movedim(-1, 0)  # type: ignore[no-any-return]
    if name in ("matmul", "bmm", "mm"):
        left = place.argument in ("self", "tensor1")
        other = bound[next(k for k in (("other", "mat2", "tensor2") if left else ("self", "tensor1")) if k in bound)]
        return other.movedim(-2 if left else -1, 0)  # type: ignore[no-any-return]
    return None


def _fold(
    node: Node, bound: dict[str, Any], place: Sum, chosen: Tensor, names: dict[str, str],
    unfoldable: Tensor, folds: dict[str, Tensor], inexact: list[str],
) -> None:  # fmt: skip
    """Adds what the chosen constant channels contribute to the bias behind them."""
    if not bool(chosen.any()):
        return
    name = operator_name(node.target)
    groups = place.ids[chosen]
    if name not in CONVOLUTIONS and name != "linear":
        unfoldable[groups] = True
        inexact.append(f"{name} at {describe(node)}: no bias takes it up")
        return
    x = bound["input"]
    shape = [1] * x.ndim
    shape[place.dim] = -1
    only = torch.where(chosen.to(x.device).view(shape), x, torch.zeros_like(x)).nan_to_num(0.0)
    schema = {k: v for k, v in bound.items() if k not in ("input", "bias")}
    out = node.target(input=only, bias=None, **schema)  # type: ignore[operator]
    channel = out.ndim - 1 if name == "linear" else 1
    table = out.movedim(channel, 0).reshape(out.shape[channel], -1)
    spread = (table - table[:, :1]).abs().amax()
    target, sign = bias_behind(node, names)
    if target is None:
        unfoldable[groups] = True
        inexact.append(f"{name} at {describe(node)}: no bias and no BatchNorm behind it")
        return
    if float(spread) > 1e-6 * float(table.abs().amax()):
        unfoldable[groups] = True
        inexact.append(f"{name} at {describe(node)}: zero padding cuts the constant off at the border")
    middle = table[:, table.shape[1] // 2] if table.shape[1] == 1 else table.median(1).values
    folds[target] = folds.get(target, torch.zeros_like(middle)) + sign * middle


def bias_behind(node: Node, names: dict[str, str]) -> tuple[str | None, int]:
    """Returns (tensor that can take up a constant behind this call, its sign)."""
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if isinstance(bias, Node) and names.get(bias.name):
        return names[bias.name], 1
    users = _readers(node)
    while len(users) == 1 and operator_name(users[0].target) in ("flatten", "view", "reshape"):
        users = _readers(users[0])  # Linear -> BatchNorm1d over (batch x tokens, channels)
    if len(users) == 1 and operator_name(users[0].target) == "batch_norm":
        mean = users[0].args[3] if len(users[0].args) > 3 else users[0].kwargs.get("running_mean")
        rows = node.args[1].meta["val"].shape[0] if isinstance(node.args[1], Node) else -1
        if isinstance(mean, Node) and names.get(mean.name) and tuple(mean.meta["val"].shape) == (rows,):
            return names[mean.name], -1
    return None, 1


def _readers(node: Node) -> list[Node]:
    """The calls that read a value; `reshape_as(other, value)` only reads its shape."""
    return [
        u for u in node.users if not (operator_name(u.target) in ("reshape_as", "view_as") and u.args[0] is not node)
    ]


def fold_constants(
    model: nn.Module, graph: ChannelGraph, keep: Tensor, example_input: Any, *, silence: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What the constants of the groups that do not stay add to the biases behind them: {tensor name: what}, and notes.

    With `silence`, the scale factors of what goes count as zero; else only what is constant as it is folds.
    """
    behind = constants(model, graph, example_input, fold=True, removed=~keep, silence=silence)
    if not behind.inexact:
        return behind.folds, ()
    more = f", and in {len(behind.inexact) - 1} more places" if len(behind.inexact) > 1 else ""
    return behind.folds, (f"constants not folded exactly: {behind.inexact[0]}{more}",)


def check_folded(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, folds: dict[str, Tensor], example_input: Any,
    programs: Any, *, lossless: bool,
) -> tuple[str, ...]:  # fmt: skip
    """Compares what a plan leaves, constants folded, with the model as it is; returns a note unless they are equal.

    Raises SurgeryError if they are not and `lossless` says that they have to be; else the removed scale factors count
    as zero in the reference.
    """
    norms = [f"{path}.weight" for path in graph.norms if f"{path}.weight" in plan.cuts]
    zeroed = [] if lossless else [name for name in norms if 0 in plan.cuts[name].kept]
    same = check_plan(
        model, plan, example_input, graph_runner(programs["forward", False]) if programs else run, folds, zeroed
    )
    within = f"within {same.difference:.1e} of the model with zero scale factors"
    if not lossless:
        return (f"with the constants folded, the output is {within}",)
    # A folded constant is stored in the model's own dtype, so it can be no more exact than that.
    if not (same.equal or (folds and same.difference < 1e-6)):
        raise SurgeryError(
            f"removing dead channels changes the output by {same.difference:.1e} "
            f"(tolerance {same.tolerance:.0e}). The model is unchanged; please report this model"
        )
    return ()
