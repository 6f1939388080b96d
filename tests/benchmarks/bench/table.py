"""Comparing runs: means, and differences to one method paired by seed with a 95 % confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from tests.benchmarks.bench.runs import Run

# Two-sided 95 % points of Student's t by degrees of freedom.
_T95 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences and the half width of its 95 % interval (infinite for a single pair)."""
    n = len(differences)
    if n < 2:
        return statistics.mean(differences), math.inf
    t = _T95[n - 1] if n <= len(_T95) else 1.96 + 2.6 / (n - 1)
    return statistics.mean(differences), t * statistics.stdev(differences) / math.sqrt(n)


def signed(differences: Sequence[float]) -> str:
    """The mean of paired differences with its sign, and the half width of its interval where there are two or more."""
    if not differences:
        return "–"
    mean, half = interval(differences)
    return f"{mean:+.2f} ± {half:.2f}" if len(differences) > 1 else f"{mean:+.2f}"


Seeds = dict[int, float]  # accuracy in per cent by seed


def by_seed(
    results: Mapping[Run, Mapping[str, Any]], group: Callable[[Run], Hashable]
) -> dict[tuple[Hashable, str], Seeds]:
    """Accuracies of each group's methods, in the order of the runs."""
    values: dict[tuple[Hashable, str], Seeds] = {}
    for run, result in results.items():
        values.setdefault((group(run), run.method), {})[run.seed] = 100 * result["accuracy"]
    return values


def above(ours: Seeds | None, theirs: Seeds | None) -> list[float]:
    """How far ours are above theirs, a difference a seed that both have."""
    ours, theirs = ours or {}, theirs or {}
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def compare(
    results: Mapping[Run, Mapping[str, Any]], rows: Callable[[Run], Hashable], reference: str, title: str
) -> list[str]:
    """Markdown: a row a group of runs, a column a method; under each mean, how far ``reference`` is above it.

    Args:
        results: as `run_all` gives them.
        rows: the group of a run, what a row stands for.
        reference: the method that the others are compared to.
        title: of the first column.
    """
    methods = sorted(dict.fromkeys(run.method for run in results), key=lambda method: method != reference)
    values = by_seed(results, rows)
    lines = ["| " + " | ".join([title, "seeds", *methods]) + " |", "|" + "---|" * (len(methods) + 2)]
    for group in dict.fromkeys(rows(run) for run in results):
        own = values.get((group, reference), {})
        cells = [_cell(values.get((group, m), {}), own, m == reference) for m in methods]
        lines.append("| " + " | ".join([str(group), str(len(own)), *cells]) + " |")
    return lines


def overall(
    results: Mapping[Run, Mapping[str, Any]],
    rows: Callable[[Run], Hashable],
    units: Callable[[Run], Hashable],
    reference: str,
    title: str,
) -> list[str]:
    """Markdown: a row a group of runs, a column a method: how far ``reference`` is above it over like units.

    A unit gives one difference, the mean over the seeds that both have, so that units of one seed count as well. A
    cell has their mean with its 95 % interval, the least of them, and their number where it is not the reference's.

    Args:
        results: as `run_all` gives them.
        rows: the group of a run, what a row stands for.
        units: what a run is one seed of, such as its network.
        reference: the method that the others are compared to.
        title: of the first column.
    """
    values = by_seed(results, lambda run: (rows(run), units(run)))

    def cell(row: Hashable, method: str) -> str:
        of = [unit for (r, unit), m in values if (r, m) == (row, reference)]
        pairs = [above(values[(row, unit), reference], values.get(((row, unit), method))) for unit in of]
        means = [statistics.mean(differences) for differences in pairs if differences]
        fewer = f"; {len(means)} of {len(of)}" if len(means) < len(of) else ""
        return f"{signed(means)} (least {min(means):+.2f}{fewer})" if means else "–"

    methods = [m for m in dict.fromkeys(run.method for run in results) if m != reference]
    lines = [f"| {title} | " + " | ".join(methods) + " |", "|" + "---|" * (len(methods) + 1)]
    for row in dict.fromkeys(rows(run) for run in results):
        lines.append(f"| {row} | " + " | ".join(cell(row, method) for method in methods) + " |")
    return lines


def _cell(values: Seeds, reference: Seeds, own: bool) -> str:
    if not values:
        return "–"
    mean, differences = f"{statistics.mean(values.values()):.2f}", above(reference, values)
    if own or not differences:
        return f"**{mean}**" if own else mean
    return f"{mean} ({signed(differences)})"
