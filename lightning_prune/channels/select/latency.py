"""A latency target, met by measuring: the share of MACs whose compact model is as fast as asked."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.surgery.widths import make_plan
from lightning_prune.errors import PlanError, TargetError
from lightning_prune.support.latency import compare_latency

_STEPS = 7  # halvings of the share of MACs: within 1 %


def share_for_latency(
    units: ChannelUnits, selector: Selector, score: Tensor, example_input: Any, target: float, batch: int
) -> float:
    """The largest share of MACs whose compact model takes at most ``target`` of the dense latency on the CPU.

    Each guess is cut from a copy and timed beside the dense network, ``batch`` samples a pass; floors and alignment
    count. ``score`` is as for `Selector.select`.

    Raises:
        PlanError: even the smallest model is not as fast.
    """
    dense = copy.deepcopy(units.network).cpu()
    best, ratio = None, 1.0
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        share = 0.5 * (low + high)
        try:
            keep = selector.select(score, budget=("macs", share)).keep
        except TargetError:  # floors hold more than that
            low = share
            continue
        small = copy.deepcopy(units.network)
        make_plan(small, units.graph, keep, example_input, "eager").apply(small)
        ratio = compare_latency(dense, small.cpu(), example_input, batch).ratio
        if ratio <= target:
            low, best = share, share
        else:
            high = share
    if best is None:
        raise PlanError(
            f"target_latency={target} cannot be met: at the fewest channels that min_keep allows the compact model "
            f"still takes {ratio:.2f} of the dense latency at batch {batch}. Raise the target, lower min_keep, or set "
            "divisor=8 or 16, which makes the same channels faster."
        )
    return best
