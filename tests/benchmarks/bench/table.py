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
    groups = list(dict.fromkeys(rows(run) for run in results))
    lines = ["| " + " | ".join([title, "seeds", *methods]) + " |", "|" + "---|" * (len(methods) + 2)]
    for group in groups:
        by_method = {
            m: {r.seed: 100 * v["accuracy"] for r, v in results.items() if rows(r) == group and r.method == m}
            for m in methods
        }
        cells = [_cell(by_method[m], by_method[reference], m == reference) for m in methods]
        lines.append("| " + " | ".join([str(group), str(len(by_method[reference])), *cells]) + " |")
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
    values: dict[tuple[Hashable, str, Hashable], dict[int, float]] = {}
    for run, result in results.items():
        values.setdefault((rows(run), run.method, units(run)), {})[run.seed] = 100 * result["accuracy"]

    def cell(row: Hashable, method: str) -> str:
        own = {unit: seeds for (r, m, unit), seeds in values.items() if (r, m) == (row, reference)}
        both = [(seeds, values.get((row, method, unit), {})) for unit, seeds in own.items()]
        pairs = [[ours[s] - theirs[s] for s in ours.keys() & theirs.keys()] for ours, theirs in both]
        above = [statistics.mean(differences) for differences in pairs if differences]
        fewer = f"; {len(above)} of {len(own)}" if len(above) < len(own) else ""
        return f"{signed(above)} (least {min(above):+.2f}{fewer})" if above else "–"

    methods = [m for m in dict.fromkeys(run.method for run in results) if m != reference]
    lines = [f"| {title} | " + " | ".join(methods) + " |", "|" + "---|" * (len(methods) + 1)]
    for row in dict.fromkeys(rows(run) for run in results):
        lines.append(f"| {row} | " + " | ".join(cell(row, method) for method in methods) + " |")
    return lines


def _cell(values: Mapping[int, float], reference: Mapping[int, float], own: bool) -> str:
    if not values:
        return "–"
    mean = f"{statistics.mean(values.values()):.2f}"
    shared = sorted(values.keys() & reference.keys())
    if own or not shared:
        return f"**{mean}**" if own else mean
    difference, half = interval([reference[s] - values[s] for s in shared])
    return f"{mean} ({difference:+.2f} ± {half:.2f})" if half < math.inf else f"{mean} ({difference:+.2f})"
