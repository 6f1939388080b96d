"""Threshold selection: which scale factors of a layer may go, and in which order (Chen & Yang 2023, section 2.3).

Each rule gives every factor a *cost*: the smallest parameter at which the rule removes it. Removing what costs less
than the parameter is the rule; meeting a budget is choosing the parameter. Costs are logarithms in float64, because the
paper's own rule works with exponentials that overflow.

What the rules leave open is defined once, for all of them: factors of exactly 0 cost −inf; equal factors of a layer
have one cost, that of the last of them, so they go together; and in a layer of equal factors that is the cost of the
whole layer.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["css", "mass", "exp", "global"]
RULES: tuple[Rule, ...] = ("css", "mass", "exp", "global")


def costs(values: Tensor, rule: Rule) -> Tensor:
    """The log of the smallest δ at which a rule removes each of a layer's factors.

    - ``css``: cumulative γ² of what goes, relative to the layer's (Ye et al. 2020, "optimal thresholding").
    - ``mass``: the same with |γ|: what eq. 11 becomes with the layer-dependent δ that its bounds (8), (10) ask for.
    - ``exp``: eq. 11 as printed, ``S_N < S + ln δ``: it keeps the largest factors until they add up to −ln δ, whatever
      the width of the layer or the scale of its factors.
    - ``global``: ``ln γ`` itself: one threshold for all layers (Liu et al. 2017, Network Slimming).

    Args:
        values: the layer's factors, ≥ 0, shape [channels].
        rule: one of `RULES`.

    Returns:
        float64 [channels].

    Raises:
        ValueError: a negative or non-finite value, or an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} must be one of {RULES}.")
    size = values.detach().double()
    if not bool((size >= 0).all() and size.isfinite().all()):
        raise ValueError("scale factors must be finite and not negative; pass their absolute values.")
    if rule == "global":
        return size.log()
    ordered, order = size.sort(stable=True)
    mass = (ordered.square() if rule == "css" else ordered).cumsum(0)
    # each of a run of equal factors gets the sum at the run's end
    mass = mass[torch.searchsorted(ordered, ordered, right=True) - 1]
    total = mass[-1]
    cost = mass - total if rule == "exp" else mass.log() - total.clamp_min(torch.finfo(torch.float64).tiny).log()
    out = torch.empty_like(size)
    out[order] = cost
    return out.masked_fill(size == 0, -torch.inf)


def worths(values: Tensor, rule: Rule) -> Tensor:
    """What a layer loses with each factor in the measure of a rule, which adds up: [channels], float64, ≥ 0.

    ``css`` takes shares of the layer's γ², ``mass`` of its |γ|, ``exp`` and ``global`` the factors themselves. What has
    the larger worth has the larger of the `costs`.

    Args:
        values: the layer's factors, ≥ 0, shape [channels].
        rule: one of `RULES`.
    """
    size = values.detach().double()
    if rule not in ("css", "mass"):
        return size
    size = size.square() if rule == "css" else size
    return size / size.sum().clamp_min(torch.finfo(torch.float64).tiny)


def check_delta(delta: float, rule: Rule) -> None:
    """Raise ValueError unless ``delta`` is in (0, 1), or positive for the rule "global"."""
    if not (0 < delta < 1 or (rule == "global" and delta > 0)):
        limits = "a positive threshold" if rule == "global" else "a share in (0, 1), such as 0.001"
        raise ValueError(f"delta={delta} for the rule {rule!r} must be {limits}.")


def boundary(values: Tensor, keep: Tensor) -> float:
    """The threshold of a selection: midway between the largest factor that goes and the smallest that stays.

    Returns:
        0 if nothing goes; the smallest kept factor if some larger one goes (a budget broke the order).
    """
    gone = values[~keep]
    if not len(gone):
        return 0.0
    low, high = float(gone.max()), float(values[keep].min()) if bool(keep.any()) else math.inf
    return min(0.5 * (low + high), high) if math.isfinite(high) else low


def gap(values: Tensor, keep: Tensor) -> float:
    """The polarisation gap: (smallest kept − largest removed) / mean kept, 1 for perfectly separated modes at 0 and m.

    Returns:
        NaN if nothing or everything goes; negative if the order was broken.
    """
    if bool(keep.all()) or not bool(keep.any()):
        return math.nan
    kept = values[keep].double()
    return float((kept.min() - values[~keep].double().max()) / kept.mean().clamp_min(1e-30))
