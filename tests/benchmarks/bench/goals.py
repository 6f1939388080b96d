"""What LTP has to reach to earn its place: in how many rows of the bench it does, and where it does not."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.bench.runs import Run
from tests.benchmarks.bench.table import above, by_seed, signed


@dataclass(frozen=True)
class Goal:
    """LTP is ``points`` of accuracy or more above a method, at one compression or (None) at all."""

    method: str
    points: float = 0.0
    compression: float | None = None

    def __str__(self) -> str:
        at = "everywhere" if self.compression is None else f"at {self.compression:g}x"
        return (
            f"{self.points:g} points or more above {self.method} {at}"
            if self.points
            else f"at or above {self.method} {at}"
        )


GOALS = (Goal("magnitude"), Goal("magnitude", 0.5, 20), Goal("magnitude", 1.5, 50), Goal("ST-3"))


def goals(results: Mapping[Run, Mapping[str, Any]]) -> list[str]:
    """Markdown: a line a goal: in how many rows it is reached by the mean over seeds, and the rows where it is not.

    A row is a network at a compression. Beside what is missed stands how far the dense network is above the same
    method, which about bounds what any method can be.

    Args:
        results: with the dense network's at every compression; a goal whose method has not run is left out.
    """
    values = by_seed(results, lambda run: (run.network, run.compression))
    rows = list(dict.fromkeys((run.network, run.compression) for run in results))
    lines = []
    for goal in GOALS:
        at = [row for row in rows if goal.compression in (None, row[1])]
        found = {row: above(values.get((row, "LTP")), values.get((row, goal.method))) for row in at}
        found = {row: differences for row, differences in found.items() if differences}
        missed = []
        for row, differences in found.items():
            if statistics.mean(differences) < goal.points:
                dense = above(values.get((row, "dense")), values.get((row, goal.method)))
                missed.append(f"{row[0]}, {row[1]:g}x: {signed(differences)}, the dense network {signed(dense)}")
        if found:
            reached = f"{len(found) - len(missed)} of {len(found)}"
            lines.append(f"- {goal}: {reached}" + (f" (not {'; '.join(missed)})" if missed else ""))
    return lines
