"""From the sizes of scale factors to the channels that stay: a rule's order, cut where the budget or δ says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_prune.channels.analysis.branches import Branches
from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.prune import Pruned, prune_channels
from lightning_prune.channels.select.budget import meet_budget
from lightning_prune.channels.select.repair import repair
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.surgery.widths import equal_widths
from lightning_prune.errors import PlanError
from lightning_prune.functional.thresholds import Rule, boundary, costs, gap

Resource = Literal["macs", "params", "channels"]


@dataclass(frozen=True)
class Choice:
    """Which channels stay.

    Attributes:
        keep: of the graph's classes, bool [graph.size].
        thresholds: of each layer, on the sizes of its classes, float64 [layers].
        kept: (kept, all) classes of each layer.
        macs, params: share that is left, in (0, 1].
        channels: share of the BatchNorm channels that goes.
        gap: mean polarisation gap of the layers that lose channels (`functional.thresholds.gap`); NaN if none does.
    """

    keep: Tensor
    thresholds: Tensor
    kept: tuple[tuple[int, int], ...]
    macs: float
    params: float
    channels: float
    gap: float

    def numbers(self) -> dict[str, float]:
        """The totals, by metric name."""
        return {"macs": self.macs, "params": self.params, "channels": self.channels, "gap": self.gap}


class Chooser:
    """Chooses channels of one model again and again, as its scale factors move; nothing is traced anew.

    Args:
        model: the network.
        graph: its channel graph.
        factors: its scale factors.
        rule: in which order channels go, see `functional.thresholds.costs`.
        budget: (resource, share that may stay; of "channels" those that may go count), or None: ``delta`` decides.
        delta: the rule's parameter where there is no budget.
        min_channels: least channels of a layer, as a share (float) or a count (int).
        divisor: channel counts become multiples of it.
        form: "graph" where the compact model may run as a rewritten graph at once, so unequal splits are allowed.

    A branch whose scale factors are all exactly zero goes whole, whatever floors and budget say.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        factors: ScaleFactors,
        rule: Rule,
        budget: tuple[Resource, float] | None,
        delta: float,
        min_channels: int | float,
        divisor: int,
        form: str = "auto",
    ) -> None:
        self.graph, self.factors, self.rule = graph, factors, rule
        self._here = factors.to(torch.device("cpu"))  # choices are made on the CPU, wherever the factors are
        self.budget, self.delta = budget, delta
        self.cost = ChannelCost.of(graph)
        self._measures: dict[Resource, Callable[[Tensor], float]] = {
            "macs": self.cost.macs,
            "params": self.cost.params,
            "channels": lambda keep: float(self._members[keep].sum()),
        }
        self._limits: dict[str, Any] = {"divisor": divisor, "min_channels": min_channels}
        self._equal = [] if form == "graph" else equal_widths(model, graph)
        members = torch.zeros(graph.size)
        members[self._here.groups] = self._here.members.float()
        self._members, self._norm_channels = members, graph.norm_channels()[0]
        self._branches = Branches.of(model, graph, form)
        decided = [ids for name in graph.norms if (ids := graph.scale_ids(name)) is not None]
        self._stay = torch.zeros(graph.size, dtype=torch.bool)
        self._stay[torch.cat([ids[ids >= 0] for ids in decided])] = True
        self._stay[self._here.groups] = False  # what is left are the classes of norms that were excluded
        self._sizes = torch.empty(0)

    def choose(self, sizes: Tensor, *, last: bool = False) -> Choice:
        """The choice for the present sizes of the classes, float [classes].

        Args:
            last: whether the channels go now. A norm that is zero throughout has then had its time to wake, and what
                only feeds it goes too.

        Raises:
            PlanError: the budget cannot be met; the message names the layers that hold it back.
        """
        sizes = self._sizes = sizes.detach().double().cpu()
        factors, empty = self._here, self._whole(sizes, last)
        ordered = factors.join([costs(part, self.rule) for part in factors.by_layer(sizes)])
        classes = factors.groups
        score = torch.full((self.graph.size,), math.inf, dtype=torch.float64)
        score[classes] = ordered

        def repaired(keep: Tensor) -> Tensor:
            return repair(self.graph, keep & ~empty, score, equal=self._equal, empty=empty, **self._limits)

        if self.budget is None:
            keep = torch.ones(self.graph.size, dtype=torch.bool)
            keep[classes[ordered < math.log(self.delta)]] = False
            return self.describe(repaired(keep))
        resource, share = self.budget
        measure = self._measures[resource]
        total = measure(torch.ones(self.graph.size, dtype=torch.bool))
        order = classes[ordered.argsort(stable=True)]
        try:
            keep = meet_budget(order, self.graph.size, lambda k: measure(k) / total, share, repaired)
        except PlanError as error:
            raise PlanError(self._blame(repaired, resource, share)) from error
        return self.describe(keep)

    def cut(self, model: nn.Module, example_input: Any, keep: Tensor, **options: Any) -> Pruned:
        """Removes all but the classes in ``keep`` from a model, in place; see `prune_channels` for the options.

        Args:
            model: the network, or a copy of it.
            example_input: as the graph was traced with.
            keep: a `Choice`'s.
        """
        masks = {}
        for name in self.graph.norms:  # those that were excluded, too: what is listed stays
            ids = self.graph.scale_ids(name)
            if ids is not None:
                masks[f"{name}.weight"] = (ids < 0) | keep[ids.clamp_min(0)]
        request: dict[str, Any] = {"keep": masks, "graph": self.graph, "whole_branches": True}
        return prune_channels(model, example_input, **request, **self._limits, **options)

    def _whole(self, sizes: Tensor, last: bool) -> Tensor:
        """The classes of the branches that go whole: bool of shape (all classes,)."""
        gone = torch.zeros(self.graph.size, dtype=torch.bool)
        if self._branches is None:
            return gone
        gone[self._here.groups[sizes == 0]] = True
        silent = self._branches.silent() if last else frozenset[str]()
        gone |= self._branches.unused(silent)
        return self._branches.removable(gone, stay=self._stay, constants=True, silent=silent).empty

    def describe(self, keep: Tensor) -> Choice:
        """What a choice comes to, at the sizes that the last one was made by. keep: bool of shape (all classes,)."""
        layers = self._here.by_layer(keep[self._here.groups])
        values = self._here.by_layer(self._sizes)
        gaps = [g for g in map(gap, values, layers) if not math.isnan(g)]
        return Choice(
            keep=keep,
            thresholds=torch.tensor([boundary(v, k) for v, k in zip(values, layers, strict=True)], dtype=torch.float64),
            kept=tuple((int(k.sum()), len(k)) for k in layers),
            macs=self.cost.macs(keep) / max(self.cost.macs(), 1),
            params=self.cost.params(keep) / max(self.cost.params(), 1),
            channels=float(self._members[~keep].sum()) / max(self._norm_channels, 1),
            gap=sum(gaps) / len(gaps) if gaps else math.nan,
        )

    def _blame(self, repaired: Callable[[Tensor], Tensor], resource: Resource, share: float) -> str:
        """Says how far the model can shrink, and which layers do not shrink further."""
        keep = torch.ones(self.graph.size, dtype=torch.bool)
        keep[self._here.groups] = False
        least = repaired(keep)
        measure, everything = self._measures[resource], torch.ones_like(keep)
        total = self.cost.macs()
        rest = list(self.cost.macs_by_layer(least).items())[:5]
        layers = ", ".join(f"{name or 'the model'} {macs / total:.1%} of all MACs" for name, macs in rest)
        frozen = "; ".join(f"{name}: {reason}" for name, reason in list(self.factors.frozen.items())[:3])
        return (
            f"target_{resource}={share} cannot be met: {measure(least) / measure(everything):.3f} stays with every "
            f"layer at its floor. What is left lies in {layers}. "
            + (f"Frozen norms: {frozen}. " if frozen else "")
            + "Raise the target, lower min_keep or divisor, or exclude fewer layers."
        )
