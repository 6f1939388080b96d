"""Meeting a budget: how many of the ordered groups go, so that the model costs what was asked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_prune.errors import PlanError

_SEARCH = 200  # groups that are tried one by one to come closer to the budget


def meet_budget(
    order: Tensor,
    size: int,
    cost: Callable[[Tensor], float],
    budget: float,
    repaired: Callable[[Tensor], Tensor],
    tolerance: float = 0.005,
) -> Tensor:
    """Removes groups in order until the repaired model costs at most ``budget``, then comes as close as it can.

    One more group can cost more than the tolerance: single groups further back are restored while they fit.

    Args:
        order: groups, the first to go first, int64.
        size: number of groups in all.
        cost: of a selection (bool [size], True where kept), as a share of the whole; it may not rise when one goes.
        budget: the share that may stay.
        repaired: restores what floors, alignment and equal splits ask for.
        tolerance: share of the budget that may stay unused before single groups are tried.

    Returns:
        bool [size], repaired.

    Raises:
        PlanError: the budget is not met with all of ``order`` gone; the message has the least possible cost.
    """

    def keep(count: int) -> Tensor:
        mask = torch.ones(size, dtype=torch.bool)
        mask[order[:count]] = False
        return repaired(mask)

    low, high = 0, len(order)
    if cost(keep(0)) <= budget:
        return keep(0)
    best = keep(high)
    if cost(best) > budget:
        raise PlanError(f"{cost(best):.3f} stays even with every group removed that may go")
    while high - low > 1:
        middle = (low + high) // 2
        mask = keep(middle)
        if cost(mask) > budget:
            low = middle
        else:
            high, best = middle, mask
    gone = order[:high][~best[order[:high]]]
    for identity in reversed(gone[-_SEARCH:].tolist()):
        if cost(best) >= budget * (1 - tolerance):
            break
        more = best.clone()
        more[identity] = True
        more = repaired(more)
        if cost(more) <= budget:
            best = more
    return best
