"""The widths that keep most importance within a measured latency: table, knapsack, network, and again."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_prune.channels.latency.knapsack import BINS, choose
from lightning_prune.channels.latency.layers import TimedLayer, kept_widths, timed_layers
from lightning_prune.channels.latency.meter import Meter, compare_loaded
from lightning_prune.channels.latency.table import LayerTable, measure
from lightning_prune.channels.latency.widths import Widths, widths_of
from lightning_prune.channels.select.selection import Selection
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.surgery.widths import make_plan
from lightning_prune.errors import BudgetError, PlanError
from lightning_prune.support.latency import Call

_STEPS = 8  # in which the time of the table falls to its budget
_POLISH = 8  # further solutions at the budget itself
_ROUNDS = 8  # compact networks that are measured, at the most
NEAR = 0.02  # of the target, at which the search is content
MISS = 0.03  # of the target, over which it is missed
_SURE = 27  # pairs of calls that say so: the median of 9 is off by 2 % and more


@dataclass(frozen=True)
class Aim:
    """What a search found.

    Attributes:
        selection: what stays.
        budget: seconds of the table that the compact network may take to meet the target.
        ratio: measured latency of the compact network, as a share of the dense one's.
    """

    selection: Selection
    budget: float
    ratio: float


class LatencySearch:
    """Chooses the width of every layer by the time that layers take, measured once.

    The time of a layer depends on two widths, its input's and its output's. As in HALP, each layer of channels is
    charged what its convolutions and linear layers take at the present widths of all others, which makes the choice a
    knapsack, which is solved exactly (`knapsack.choose`): in steps of time, so that those widths are never far off, and
    again at the budget until the table itself says that it is met. What is not in the table (norms, activations,
    attention's products) is taken care of by measuring the whole compact network and correcting the budget.

    Args:
        selector: of the network; its floors, divisor and ties hold.
        meter: the clock.
        batch: samples in a call.
        known: {layer as text: seconds} that were measured before; what is measured now is added.

    Raises:
        PlanError: no layer whose time is measured can get narrower.
    """

    def __init__(self, selector: Selector, meter: Meter, batch: int, known: dict[str, float] | None = None) -> None:
        self.selector, self.meter, self.batch = selector, meter, batch
        self.known = {} if known is None else known
        self.layers: list[TimedLayer] = timed_layers(selector.units.graph, batch)
        if not self.layers:
            raise PlanError(
                f"target_latency: no convolution or linear layer of {type(selector.units.network).__name__} can get "
                "narrower. Use target_macs or target_params, or print the ChannelGraph for the reasons"
            )
        self.tables: list[LayerTable] = measure(self.layers, meter, selector.divisor, self.known)
        self._ratios: dict[tuple[int, ...], float] = {}  # measured, by the shapes of the compact network

    # ---- by the table -----------------------------------------------------------------------------------------------

    def seconds(self, keep: Tensor) -> float:
        """What the table says of keeping some groups, bool [groups]."""
        widths = [torch.tensor(kept_widths(layer, keep), dtype=torch.float64) for layer in self.layers]
        return sum(float(table.time(*at)) for table, at in zip(self.tables, widths, strict=True))

    def solve(self, score: Tensor, budget: float) -> Tensor:
        """The groups to keep, bool [groups], that are worth most within a time of the table.

        The optimum, to the bound of `choose`, where no layer's time depends on two widths that can shrink; else the
        best of the knapsacks around the widths that the one before gave.

        Args:
            score: as for `Selector.select`.
            budget: seconds.

        Raises:
            BudgetError: the floors alone take longer.
        """
        order, worth = self.selector.ranked(score)
        widths = self._widths(order)
        values = widths.worth(worth)
        now = widths.full()
        whole = widths.seconds(now)
        if budget >= whole:
            return widths.keep(now)
        best, most, tight = None, -math.inf, budget
        for i in range(_STEPS + _POLISH):
            last = i >= _STEPS - 1
            goal = tight if last else whole * (budget / whole) ** ((i + 1) / _STEPS)
            prices = widths.prices(now)
            rest = widths.seconds(now) - sum(float(p[at]) for p, at in zip(prices, widths.places(now), strict=True))
            try:
                picked = widths.options(choose(values, prices, goal - rest, BINS if last else BINS // 8))
            except BudgetError:
                picked = widths.least()
            moved, now = picked != now, picked
            took = widths.seconds(now)
            if last and took <= budget * (1 + 1e-9):
                gain = sum(float(v[at]) for v, at in zip(values, widths.places(now), strict=True))
                if gain > most:
                    best, most = now, gain
                tight = min(budget, tight + 0.5 * (budget - took))
                if not moved:
                    break
            elif last:  # widths that shrink together save less than each alone would
                tight -= took - budget
        if best is None:
            best = widths.least()
            if (took := widths.seconds(best)) > budget:
                raise BudgetError(f"The floors take {took:.3g} s by the table, more than {budget:.3g} s.")
        return widths.keep(best)

    def solve_near(self, score: Tensor, budget: float) -> Tensor:
        """As `solve`, or where the floors alone take longer, the floors."""
        try:
            return self.solve(score, budget)
        except BudgetError:
            widths = self._widths(self.selector.ranked(score)[0])
            return widths.keep(widths.least())

    def _widths(self, order: Tensor) -> Widths:
        return widths_of(self.selector, self.layers, self.tables, order)

    # ---- by the clock -----------------------------------------------------------------------------------------------

    def aim(self, score: Tensor, example_input: Any, target: float, *, removal: bool = False) -> Aim:
        """The selection whose compact network takes ``target`` of the dense latency, measured; within 3 %.

        Each guess is cut from a copy and timed beside the dense network, once for all guesses of the same shapes, in
        later calls too. Where widths are so coarse that none lies within 3 %, it is the nearest that was found.

        Args:
            score: as for `Selector.select`.
            example_input: as the graph was traced with.
            target: share of the latency that is left, in (0, 1).
            removal: see `Selector.select`.

        Raises:
            PlanError: even the smallest network is not as fast.
        """
        dense = functools.cache(lambda: self._load(example_input))
        everything = torch.ones(self.selector.units.size, dtype=torch.bool)
        whole, share = self.seconds(everything), target
        low, high = (0.0, 0.0), (1.0, 1.0)  # (share of the table's time, measured ratio) on both sides of the target
        found: list[Aim] = []
        for _ in range(_ROUNDS):
            keep = self.solve_near(score, share * whole)
            floor = self.seconds(keep) > share * whole * (1 + 1e-9)
            selection = self.selector.select(score, removal=removal, keep=keep)
            shapes = self._shapes(selection.keep)
            if shapes not in self._ratios:
                timed = functools.partial(
                    compare_loaded, self.meter, dense(), self._load(example_input, selection.keep), self.batch
                )
                ratio = timed().ratio
                if abs(ratio / target - 1) <= 2 * MISS:
                    ratio = timed(pairs=_SURE).ratio
                self._ratios[shapes] = ratio
            ratio = self._ratios[shapes]
            found.append(Aim(selection, share * whole, ratio))
            if abs(ratio / target - 1) <= NEAR:
                break
            if ratio > target:
                if floor:
                    break
                high = (share, ratio)
            else:
                low = (share, ratio)
            share = _between(low, high, target)
        best = min(found, key=lambda each: abs(math.log(each.ratio / target)))
        if floor and best.ratio > target * (1 + MISS):
            raise PlanError(
                f"target_latency={target} cannot be met: at the fewest channels that min_keep allows the compact model "
                f"still takes {best.ratio:.2f} of the dense latency at batch {self.batch} in {self.meter.runtime}. "
                "Raise the target, lower min_keep, or set divisor=8 or 16, which makes the same channels faster."
            )
        return best

    def _shapes(self, keep: Tensor) -> tuple[int, ...]:
        """The sizes that dims with channels have when some groups stay: what a network's time depends on."""
        axes = self.selector.units.graph.axes.values()
        return tuple(int(((ids < 0) | keep[ids.clamp_min(0)]).sum()) for dims in axes for ids in dims.values())

    def _load(self, example_input: Any, keep: Tensor | None = None) -> Call:
        """The network, or what it is when some groups stay, in the meter's runtime."""
        units = self.selector.units
        network = copy.deepcopy(units.network)
        if keep is not None:
            make_plan(network, units.graph, keep, example_input, "eager").apply(network)
        return self.meter.load(network.cpu(), example_input, self.batch)


def _between(low: tuple[float, float], high: tuple[float, float], target: float) -> float:
    """The share of time to try next: on the line between two (share, ratio) around the target, off their ends."""
    (a, ra), (b, rb) = low, high
    part = (target - ra) / (rb - ra) if rb > ra else 0.5
    return a + (b - a) * min(0.9, max(0.1, part))
