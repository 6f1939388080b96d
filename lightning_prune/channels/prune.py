"""`prune_channels`: trace, score, select, remove."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.channels.analysis.constants import constants as find_constants
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.remove import Pruned, remove_channels
from lightning_prune.channels.select.requests import (
    check_arguments,
    check_emptied,
    from_importance,
    from_lists,
    from_scores,
    lossless,
)
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.verify.whole import Whole
from lightning_prune.functional.least_squares import Form
from lightning_prune.scores import ScoreLike, find_score
from lightning_prune.scoring.collect import collect, run_network
from lightning_prune.scoring.reconstruct import calls_of, check_calls, check_form, told
from lightning_prune.scoring.reconstruct import reconstruct as refit
from lightning_prune.scoring.scope import Scope, check_scope, importance
from lightning_prune.support.modes import join_input, mode


def prune_channels(
    model: nn.Module,
    example_input: Any,
    scores: Mapping[str, Tensor] | None = None,
    keep: Mapping[str, Any] | None = None,
    *,
    score: ScoreLike | None = None,
    batches: Iterable[Any] = (),
    scope: Scope = "global",
    reconstruct: Form | None = None,
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
    norms: str = "keep",
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

    Without `score`, `scores` and `keep` it removes exactly what is already dead, and the model computes the same
    function.

    Args:
        model: any module that `ChannelGraph.trace` takes, or that holds one (see `network`).
        example_input: the one argument, a tuple of positional arguments, or a dict of keyword arguments.
        scores: {tensor name or module path: score of each channel in dim 0}; the higher, the more it stays.
            Needs one of `ratio`, `threshold`, `macs`, `params` and `channels`.
        keep: {tensor name or module path: bool mask or indices of the channels in dim 0 to keep}. A channel goes if
            every tensor it is tied to and that is listed here lets it go.
        score: instead of scores by name, how to make them: "taylor" or another of `scores.score_names()`, a `Score`, or
            a function ``ChannelUnits -> [groups]``. Needs one of the same.
        batches: what such a score is measured on, in eval mode, if it needs activations or gradients: (input, labels)
            as a loader gives them, or inputs alone (tensors or dicts) if it needs no labels.
        scope: among whom `score` ranks: "global" all, "layer" the same share of each layer, "isomorphic" the same share
            of layers of like structure, ranked together. A threshold is then on quantiles.
        reconstruct: whether the layers that read removed channels are refitted on `batches` afterwards, by least
            squares: "weights" all of their weights, "scale" a factor a channel, see `scoring.reconstruct`. A rewritten
            graph is not.
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
        groups, attention, allow_inexact, norms: see `ChannelGraph.trace`.
        constants: a pruned channel with a β emits a constant. "drop" removes it with the channel; "fold" adds it to
            the biases behind (scale factors of removed channels count as zero), exactly, or with a note where zero
            padding makes it inexact. A score that gives means ("variance") has those added instead, whatever this
            says. Without scores and keep, "fold" also removes channels that are constant and can
            be folded exactly.
        form: "eager" keeps the model's own code, "graph" rewrites its graph, "auto" tries eager first, and takes the
            graph where the model's own code cannot meet the target.
        verify: whether to compare masked with sliced on a random batch before anything is changed; where the model does
            something else in train mode, there too. The removal of a branch is tried in any case, in train mode too if
            this is True.
        graph: a channel graph of this very model, or of the `network` in it, to save the tracing.
        network: path of the part of the model that is pruned, such as the backbone of a detector that cannot be traced
            as a whole. Names, costs and the plan are that part's; the whole is compared, and called on `batches`.
        example_kwargs: keyword arguments beside positional ones.
        optimizers, averaged: see `PruningPlan.apply`.

    Raises:
        TraceError: the model cannot be traced.
        TargetError: the target cannot be met.
        PlanError: the request does not fit the model, or it would remove nothing.
        SurgeryError: no form of the compact model computes the same; the model is as it was.
    """
    targets: dict[Any, float | None] = {"macs": macs, "params": params, "channels": channels}
    asked = {"score": score, "scores": scores, "keep": keep}
    check_arguments(form, constants, asked, {"ratio": ratio, "threshold": threshold, **targets})
    check_scope(scope)
    check_form(reconstruct)
    rating = None if score is None else find_score(score)
    options: dict[str, Any] = {
        "groups": groups, "attention": attention, "allow_inexact": allow_inexact, "norms": norms,
    }  # fmt: skip
    if reconstruct is not None:
        check_calls(batches := list(batches))
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
    target = next(((name, share) for name, share in targets.items() if share is not None), None)
    how: dict[str, Any] = {"ratio": ratio, "threshold": threshold, "target": target}
    means: Mapping[str, Tensor] = {}
    if rating is not None:
        values = collect(rating, units, batches, run_network(given), module=given)
        means = rating.means(values)
        request = from_importance(importance(rating, units, values, scope), units.members(), units.proven_zero(), **how)
    elif scores is not None:
        request = from_scores(graph, scores, units.proven_zero(), reduce=reduce, **how)
    elif keep is not None:
        request = from_lists(graph, keep, none=selector.branches is not None)
    else:
        found = find_constants(model, graph, example_input, fold=constants == "fold")
        request = lossless(found, selector.branches, fold=constants == "fold")
    selection = selector.meet(request)
    if keep is not None:
        check_emptied(graph, selection)
    dense = deepcopy(model) if reconstruct is not None else None
    pruned = remove_channels(
        model, example_input, selector, selection, constants=constants, form=form, verify=verify, whole=whole,
        remove_branches=remove_branches, optimizers=optimizers, averaged=averaged, on_miss="raise", means=means,
    )  # fmt: skip
    if dense is not None and reconstruct is not None:
        with mode(given, False):
            calls = calls_of(model, run_network(given), batches)
        pruned = replace(pruned, notes=(*pruned.notes, told(refit(model, dense, pruned.plan, calls, form=reconstruct))))
    return replace(pruned, model=given)
