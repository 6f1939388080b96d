"""The multiple-choice knapsack: one width of each layer, so that most importance stays within a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.errors import BudgetError

BINS = 8192


def choose(worth: Sequence[Tensor], cost: Sequence[Tensor], budget: float, bins: int = BINS) -> list[int]:
    """One option of each layer, of the largest sum of worth whose sum of costs is within the budget.

    The problem that HALP (Shen et al., "Structural Pruning via Latency-Saliency Knapsack", NeurIPS 2022, arXiv
    2210.06659) and MDP (Sun et al., arXiv 2406.12079) pose, solved by dynamic programming over the time above the
    cheapest options, in ``bins`` equal steps. Costs are rounded up to a step, so the answer never exceeds the budget.
    It is the optimum where costs are whole steps, and else worth at least as much as the optimum of a budget that is
    smaller by ``layers / bins`` of that time.

    Args:
        worth: of the options of each layer, float64 [options], one tensor a layer.
        cost: the same, of any unit; it need not grow with the worth.
        budget: of the sum of costs.
        bins: steps.

    Returns:
        The index of the option of each layer; the first of equals.

    Raises:
        BudgetError: the cheapest options together cost more than the budget.
    """
    least = float(sum(c.min() for c in cost))
    room = budget - least
    if room < 0:
        raise BudgetError(f"The cheapest options cost {least:.6g} together, more than the budget of {budget:.6g}.")
    step = room / bins
    best, chosen = torch.zeros(bins + 1, dtype=torch.float64), []
    for value, price in zip(worth, cost, strict=True):
        over = price - price.min()
        # what is a whole number of steps but for rounding stays that number
        steps = (over / step - 1e-9).ceil().long() if step > 0 else torch.where(over > 0, bins + 1, 0)
        table = torch.full((len(value), bins + 1), -torch.inf, dtype=torch.float64)
        for row, v, s in zip(table, value.tolist(), steps.tolist(), strict=True):
            if s <= bins:
                row[s:] = best[: bins + 1 - s] + v
        best, option = table.max(0)
        chosen.append((option, steps))
    left, picked = bins, []
    for option, steps in reversed(chosen):
        picked.append(int(option[left]))
        left -= int(steps[picked[-1]])
    return picked[::-1]
