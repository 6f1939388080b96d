"""From scores of channel groups to a `Selection`: an order, cut where the budget or δ says, then repaired."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_prune.channels.analysis.branches import Branches, RemovedBranches
from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.select.repair import check_limits, meet_budget, repair
from lightning_prune.channels.select.selection import MISS, Request, Resource, Selection
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.surgery.widths import equal_widths
from lightning_prune.channels.verify.find_form import Check, Ties
from lightning_prune.errors import PlanError, TargetError
from lightning_prune.functional.thresholds import Rule, boundary, costs, gap, worths


class Selector:
    """Selects channel groups of one network again and again; nothing is traced anew, and nothing here changes.

    Args:
        units: the network's channel groups.
        rule: in which order the groups of a layer go, see `functional.thresholds.costs`; None: the scores themselves,
            over all layers.
        budget: (resource, share that may be left; of "channels" those that may go count), or None: ``delta`` decides.
        delta: where there is no budget: the rule's parameter, or without a rule the score that stays.
        min_channels: least channels of a layer, as a share (float) or a count (int).
        divisor: channel counts become multiples of it.
        form: "graph" where the compact model may run as a rewritten graph at once, so unequal splits are allowed.
        remove_branches: whether layers that are proven to do nothing lose all of their channels where another path
            leads around them, whatever floors and budget say.
    """

    def __init__(
        self, units: ChannelUnits, *, rule: Rule | None, budget: tuple[Resource, float] | None, delta: float,
        min_channels: int | float, divisor: int, form: str = "auto", remove_branches: bool = True,
    ) -> None:  # fmt: skip
        check_limits(min_channels, divisor)
        self.units, self.rule, self.budget, self.delta, self.form = units, rule, budget, delta, form
        self.min_channels, self.divisor = min_channels, divisor
        self.cost = ChannelCost.of(units.graph)
        self.branches = Branches.of(units.network, units.graph, form) if remove_branches else None
        self._members = units.members()
        self._measures: dict[Resource, Callable[[Tensor], float]] = {
            "macs": self.cost.macs,
            "params": self.cost.params,
            "channels": lambda keep: float(self._members[keep].sum()),
        }
        everything = torch.ones(units.size, dtype=torch.bool)
        self._totals = {name: max(measure(everything), 1) for name, measure in self._measures.items()}
        self._equal = equal_widths(units.network, units.graph)

    def select(
        self, score: Tensor, *, removal: bool = False, extra_ties: Ties = (),
        budget: tuple[Resource, float] | None = None, keep: Tensor | None = None,
    ) -> Selection:  # fmt: skip
        """The selection for the present scores.

        Args:
            score: importance of each group, float [groups]; the lowest go first. Groups that stay, and groups of
                score +inf, are not asked; a layer of which all have -inf is taken for one that does nothing.
            removal: whether the channels go now. A norm that is zero throughout has then had its time to be trained,
                and what only feeds it goes too.
            extra_ties: groups whose kept counts must be equal, beside those that the network's code shows.
            budget: instead of the selector's own.
            keep: bool [groups], what is to stay, before floors, alignment and ties, instead of a budget.

        Raises:
            TargetError: the budget cannot be met; the message names the layers that hold it back.
            PlanError: no group may go, or the scores are no scores.
        """
        units, target = self.units, None if keep is not None else budget or self.budget
        score = self._checked(score)
        if keep is None and target is None:
            keep = self._order(score) >= (self.delta if self.rule is None else math.log(self.delta))
        elif keep is None:
            keep = torch.ones(units.size, dtype=torch.bool)
        shut = self.branches.silent() if removal and self.branches is not None else frozenset[str]()
        request = Request(score, keep, units.proven_zero() | (score == -math.inf), units.held, target, shut)
        return self.meet(request, ties=extra_ties)

    def ranked(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """What groups go by, the lowest first, and what each is worth, which adds up: both float64 [groups].

        The first is +inf where a group is not asked; the second is 0 there, and positive elsewhere, if only just: of
        what is worth nothing, more channels are better than fewer.
        """
        score = self._checked(score)
        worth = torch.zeros_like(score)
        for i in range(len(self.units.layers)):
            mine = (self.units.layer == i) & (score < math.inf)
            if bool(mine.any()):
                worth[mine] = score[mine] if self.rule is None else worths(score[mine], self.rule)
        asked = score < math.inf
        lowest = worth[asked & worth.isfinite()].amin().clamp_max(0.0) if bool(asked.any()) else 0.0
        worth = torch.where(asked, (worth - lowest).clamp_min(0.0), 0.0)
        return self._order(score), torch.where(asked, worth + 1e-6 * float(worth.mean() or 1.0), 0.0)

    def removable(self, request: Request, check: Check = lambda empty: "") -> RemovedBranches:
        """The branches that a request removes, where `check` does not say why the code cannot run without them."""
        if self.branches is None:
            return RemovedBranches.none(self.units.size)
        dead, exact = request.dead | self.branches.unused(request.shut), request.lossless
        return self.branches.removable(dead, stay=request.stay, constants=not exact, silent=request.shut, check=check)

    def meet(
        self, request: Request, whole: RemovedBranches | None = None, *, ties: Ties = (), form: str | None = None,
        strict: bool = True,
    ) -> Selection:  # fmt: skip
        """The selection that does what is asked, as nearly as floors, alignment and ties allow.

        Args:
            whole: the branches that go; by default `removable` ones, none in a rewritten graph.
            ties: groups whose kept counts must be equal, beside those that the network's code shows.
            form: as the selector's own; a rewritten graph has neither ties nor layers without channels.
            strict: whether a target that cannot be met is an error; otherwise as little as possible stays.

        Raises:
            TargetError: the budget cannot be met.
        """
        graph_form = (form or self.form) == "graph"
        whole = RemovedBranches.none(self.units.size) if graph_form else whole or self.removable(request)
        empty, ordered = whole.empty, self._order(request.score)
        limits: dict[str, Any] = {
            "divisor": self.divisor, "min_channels": self.min_channels, "empty": empty,
            "equal": [*ties] if graph_form else [*self._equal, *ties],
        }  # fmt: skip

        def repaired(keep: Tensor) -> Tensor:
            return repair(self.units.graph, (keep | request.stay) & ~empty, ordered, **limits)

        if request.target is None:
            return self.describe(repaired(request.keep), request, whole)
        resource, share = request.target
        measure, total = self._measures[resource], self._totals[resource]
        order = ordered.argsort(stable=True)
        order = order[(ordered[order] < math.inf) & ~request.stay[order]]
        why = ""
        try:
            keep = meet_budget(order, self.units.size, lambda k: measure(k) / total, share, repaired)
        except PlanError as error:
            keep = torch.ones(self.units.size, dtype=torch.bool)
            keep[order] = False
            keep = repaired(keep)
            if strict:
                raise TargetError(
                    f"target_{resource}={share:g} cannot be met: {measure(keep) / total:.3f} stays even with every "
                    f"layer at its floor. {self._blame(keep, request.score)}"
                ) from error
            why = f"every layer is at its floor, with {len(ties)} ties that the network's own code needs"
        if measure(keep) / total < share * (1 - MISS):
            alone = measure(repaired(torch.ones_like(keep))) / total
            why = (
                f"the branches that are removed leave {alone:.3f} by themselves" if alone <= share
                else f"the next channels to stay would go over it (divisor={self.divisor}, tied channels)"
            )  # fmt: skip
        return self.describe(keep, request, whole, why)

    def describe(
        self, keep: Tensor, request: Request, whole: RemovedBranches | None = None, reason: str = ""
    ) -> Selection:
        """What keeping some groups, bool [groups], comes to."""
        values, layers = self.units.by_layer(request.score), self.units.by_layer(keep)
        known = [v.isfinite() for v in values]
        pairs = [(v[k], mine[k]) for v, mine, k in zip(values, layers, known, strict=True)]
        gaps = [g for v, k in pairs if not math.isnan(g := gap(v, k))]
        share = {name: measure(keep) / self._totals[name] for name, measure in self._measures.items()}
        whole = whole or RemovedBranches.none(len(keep))
        return Selection(
            keep=keep,
            score=request.score,
            thresholds=torch.tensor([boundary(v, k) for v, k in pairs], dtype=torch.float64),
            kept=tuple((int(k.sum()), len(k)) for k in layers),
            gap=sum(gaps) / len(gaps) if gaps else math.nan,
            target=request.target,
            request=request,
            empty=whole.empty,
            refused=whole.refused,
            reason=reason,
            **share,
        )

    def _checked(self, score: Tensor) -> Tensor:
        """Scores as float64 on the CPU, +inf for what stays."""
        free = self.units.free
        if score.shape != free.shape:
            raise PlanError(f"score has shape {tuple(score.shape)}, expected {tuple(free.shape)}, one a channel group")
        if not bool(free.any()):
            why = "; ".join(f"{name}: {reason}" for name, reason in list(self.units.frozen.items())[:3])
            raise PlanError(f"no channel of {type(self.units.network).__name__} may be removed: {why}")
        score = score.detach().double().cpu().masked_fill(~free, math.inf)
        if bool(score.isnan().any()):
            raise PlanError(
                f"{int(score.isnan().sum())} of {int(free.sum())} scores are NaN; expected numbers. If the network's "
                "weights are NaN too, the training has diverged: lower the learning rate"
            )
        if self.rule is not None and bool((score < 0).any()):
            raise PlanError(f"rule={self.rule!r} needs scores from 0 on, found {float(score.min()):.3g}; use rule=None")
        return score

    def _order(self, score: Tensor) -> Tensor:
        """What groups go by, the lowest first, float64 [groups]; +inf where there is no score."""
        if self.rule is None:
            return score
        out = torch.full_like(score, math.inf)
        for i in range(len(self.units.layers)):
            mine = (self.units.layer == i) & (score < math.inf)
            if bool(mine.any()):
                out[mine] = costs(score[mine], self.rule)
        return out

    def _blame(self, least: Tensor, score: Tensor) -> str:
        """Which layers do not shrink further than ``least``, bool [groups], or have no score, and what to do."""
        total = self._totals["macs"]
        rest = list(self.cost.macs_by_layer(least).items())[:5]
        layers = ", ".join(f"{name or 'the model'} {macs / total:.1%} of all MACs" for name, macs in rest)
        frozen = "; ".join(f"{name}: {reason.split('; ')[0]}" for name, reason in list(self.units.frozen.items())[:3])
        asked = self.units.layer[score < math.inf].unique().tolist()
        unscored = [names[0] for i, names in enumerate(self.units.layers) if i not in asked]
        return (
            f"What is left lies in {layers}. "
            + (f"Layers that stay whole: {frozen}. " if frozen else "")
            + (f"Layers whose channels have no score, {len(unscored)}: {', '.join(unscored[:3])}. " if unscored else "")
            + "Raise the target, lower the floors (min_keep, min_channels) or divisor, or let more layers lose "
            "channels (exclude fewer, score more)"
        )
