"""Schedules as pure functions of progress: 0 at the start of a phase, 1 at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

Shape = Literal["exponential", "cosine", "constant"]


def anneal(progress: float, start: float, end: float, shape: Shape = "exponential") -> float:
    """From ``start`` to ``end`` as progress goes from 0 to 1; ``constant`` is ``end`` throughout.

    Args:
        progress: position in the phase; clamped to [0, 1].
        start: value at 0, > 0.
        end: value at 1, > 0.
        shape: geometric interpolation, half a cosine, or none.
    """
    p = min(max(progress, 0.0), 1.0)
    if shape == "exponential":
        return float(start * (end / start) ** p)
    if shape == "cosine":
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * p))
    return end


def exponential_path(progress: float, density: float, hold: float = 0.3) -> float:
    """Share of weights to keep: from 1 down to ``density`` exponentially, reached at ``1 − hold``, then level.

    Exponential, as the kept share of LTP decays on its own (its ResNet-20 ablation); the level end lets thresholds and
    weights settle before the hard prune.
    """
    return float(density ** min(max(progress, 0.0) / (1.0 - hold), 1.0))


def cubic_path(progress: float, density: float, hold: float = 0.15) -> float:
    """Share of weights to keep, ``d + (1 − d)(1 − p)³`` (Zhu & Gupta 2017), reached at ``1 − hold``, then level."""
    p = min(max(progress, 0.0) / (1.0 - hold), 1.0)
    return density + (1.0 - density) * (1.0 - p) ** 3


def settling(progress: float, hold: float) -> float:
    """From 1 to 0 while a path is level: thresholds come to rest, and no layer is left softer than another.

    Behind a BatchNorm an output that lives on half closed gates is as strong as any, and the prune would kill it.
    """
    return min(1.0, (1.0 - progress) / hold)


def piecewise(position: float, start: float, steps: Mapping[int, float]) -> float:
    """A value that changes at given positions: ``start`` before the first, then that of the last one reached."""
    reached = [at for at in steps if at <= position]
    return float(steps[max(reached)]) if reached else start
