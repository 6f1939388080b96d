"""`search_widths`: candidates of one cost, tried one after the other, and the plan of the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.remove import remove_channels
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.errors import PlanError
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.scores import ScoreLike, find_score
from lightning_prune.scoring.collect import collect, run_network
from lightning_prune.scoring.scope import importance
from lightning_prune.search.amc import AMC, layer_features, layer_macs
from lightning_prune.search.evolution import Chance, Evolution
from lightning_prune.search.proxy import Evaluate, Proxy
from lightning_prune.search.shifted import ShiftedScore
from lightning_prune.support.near import did_you_mean

Method = Literal["evolution", "amc", "random"]


class Searcher(Protocol):
    """What proposes actions of the layers, and learns what they are worth."""

    def propose(self) -> Tensor: ...
    def learn(self, actions: Tensor, value: float) -> None: ...


@dataclass(frozen=True)
class Tried:
    """A candidate.

    Attributes:
        shifts: of each layer, in [0, 1]: what it loses more than a layer of 0, before the budget is met.
        kept: (kept, all) channel groups of each layer.
        value: what `evaluate` gave.
    """

    shifts: tuple[float, ...]
    kept: tuple[tuple[int, int], ...]
    value: float


@dataclass(frozen=True)
class WidthSearch:
    """What a search found.

    Attributes:
        plan: of the best candidate; ``plan.apply(model)`` removes the channels.
        score: the same as a score, for `prune_channels` and `ScorePruningCallback` at the search's target and floor;
            its ``shifts`` have the layers' names.
        trail: all candidates in the order in which they were tried; the first has the same share of every layer.
    """

    plan: PruningPlan
    score: ShiftedScore
    trail: tuple[Tried, ...]

    @property
    def best(self) -> Tried:
        """The candidate of highest value; of several, the first."""
        return best_of(self.trail)


def search_widths(
    model: nn.Module,
    example_input: Any,
    evaluate: Evaluate,
    *,
    score: ScoreLike = "l1",
    batches: Iterable[Any] = (),
    macs: float = 0.5,
    method: Method = "evolution",
    budget: int = 100,
    seed: int = 0,
    recalibrate_on: Iterable[Any] = (),
    min_channels: int | float = 0.2,
    divisor: int = 1,
) -> WidthSearch:
    """Searches how many channels each layer keeps, at a share of the MACs that is the same for every candidate.

    A candidate is the removal of the channels of least score, layer by layer, in the shares that it stands for; it is
    judged at once, with channels masked and nothing trained. The model is left as it was.

    Args:
        model: any module that `ChannelGraph.trace` takes.
        example_input: as for `prune_channels`.
        evaluate: the network with channels masked, in eval mode → its worth, the higher the better; `accuracy_on` makes
            one of held-out batches. Do not give it data that is tested on later.
        score: which channels of a layer go first, see `prune_channels`.
        batches: what such a score is measured on, if it needs data.
        macs: share of the multiply-accumulates that may be left.
        method: "evolution"; "amc", the agent of He et al., ECCV 2018, arXiv 1802.03494; or "random", the control.
        budget: number of candidates.
        seed: the same one finds the same.
        recalibrate_on: inputs (tensors, tuples or dicts) on which BatchNorm statistics are estimated anew for each
            candidate; without them a network with BatchNorm is mostly judged by statistics that are off.
        min_channels: channels that stay in every layer, as a count or (float) as a share; the paper's share is 0.2.
        divisor: channel counts of cut layers become multiples of it.

    Raises:
        ValueError: an unknown method, a budget below 1, or ``evaluate`` gives no finite number.
        TargetError: the target cannot be met.
        TraceError, PlanError, SurgeryError: see `prune_channels`.
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is none of {get_args(Method)}. {did_you_mean(method, get_args(Method))}")
    if budget < 1:
        raise ValueError(f"budget={budget} must be a positive number of candidates, such as 100.")
    if not 0.0 < macs < 1.0:
        raise PlanError(f"macs={macs}: expected the share that may stay, between 0 and 1, such as 0.5")
    rating, batches = find_score(score), list(batches)
    graph = ChannelGraph.trace(model, example_input)
    units = ChannelUnits.of(model, graph)
    if not units.layers:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(units.frozen.items())[:3])
        raise PlanError(f"no channel of {type(model).__name__} may be removed: {why}")
    values = collect(rating, units, batches, run_network(model))
    selector = Selector(
        units, rule=None, budget=None, delta=0.0, min_channels=min_channels, divisor=divisor, remove_branches=False
    )
    quantile = importance(rating, units, values, "layer")
    proxy = Proxy(units, quantile, selector, ("macs", macs), evaluate, list(recalibrate_on))
    trail = search(proxy, method, budget, seed)
    best = best_of(trail)
    pruned = remove_channels(
        deepcopy(model), example_input, selector, proxy.select(torch.tensor(best.shifts, dtype=torch.float64)),
        constants="drop", remove_branches=False, on_miss="raise", means=rating.means(values),
    )  # fmt: skip
    names = [tensors[0] for tensors in units.layers]
    return WidthSearch(pruned.plan, ShiftedScore(rating, dict(zip(names, best.shifts, strict=True))), trail)


def best_of(trail: Sequence[Tried]) -> Tried:
    """The candidate of highest value; of several, the first."""
    return max(trail, key=lambda tried: tried.value)


def search(proxy: Proxy, method: Method, budget: int, seed: int) -> tuple[Tried, ...]:
    """The trail of a search; the first candidate has the same share of every layer."""
    units, trail = proxy.units, list[Tried]()
    searcher = searcher_of(method, units, proxy.selector, budget, torch.Generator().manual_seed(seed))
    for number in range(budget):
        actions = searcher.propose() if number else torch.full((len(units.layers),), 0.5, dtype=torch.float64)
        selection = proxy.select(actions)
        value = proxy.value(selection.keep)
        searcher.learn(actions, value)
        trail.append(Tried(tuple(actions.tolist()), selection.kept, value))
    return tuple(trail)


def searcher_of(
    method: Method, units: ChannelUnits, selector: Selector, budget: int, generator: torch.Generator
) -> Searcher:
    """What searches by a method."""
    if method == "amc":
        features = layer_features(units, selector.cost)
        return AMC(features, layer_macs(units, selector.cost), budget, generator)
    return (Evolution if method == "evolution" else Chance)(len(units.layers), generator)
