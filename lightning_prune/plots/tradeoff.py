"""Plots of accuracy against compression: the entries of a trail, or the runs of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lightning_prune.plots.figure import new_figure


class Station(Protocol):
    """One point of a trail, such as `TrailEntry`: the kept share and what it scored."""

    @property
    def kept(self) -> float: ...
    @property
    def score(self) -> float | None: ...
    @property
    def metric(self) -> str | None: ...


class Stations(Protocol):
    """What has entries, such as a `Trail`."""

    @property
    def entries(self) -> Sequence[Station]: ...


def accuracy_against_compression(
    runs: Stations | Mapping[str, Stations | Sequence[tuple[float, float]]],
    dense: float | None = None,
    xlabel: str = "compression",
) -> Any:
    """Accuracy against compression, a line a run.

    Args:
        runs: a trail, or {label: a trail, or (compression, accuracy) pairs}. Entries without a score are left out.
        dense: accuracy of the dense network, drawn as a level line.
        xlabel: what the pairs' first numbers are, such as "share of MACs left".

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: no run has a point.
        ModuleNotFoundError: matplotlib is not installed.
    """
    named = runs if isinstance(runs, Mapping) else {"trail": runs}
    points = {name: sorted(_points(run)) for name, run in named.items()}
    if not any(points.values()):
        raise ValueError(f"none of {list(named)} has an entry with a score: a trail's scores are a validation metric.")
    metrics = {e.metric for run in named.values() if not isinstance(run, Sequence) for e in run.entries if e.metric}
    figure = new_figure(5.0, 3.6)
    ax = figure.subplots()
    for name, pairs in points.items():
        ax.plot([x for x, _ in pairs], [y for _, y in pairs], "o-", markersize=4, label=name)
    if dense is not None:
        ax.axhline(dense, color="0.4", linestyle="--", linewidth=1, label="dense")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(metrics.pop() if len(metrics) == 1 else "accuracy")
    if max(x for pairs in points.values() for x, _ in pairs) > 4:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    ax.legend(fontsize=7)
    return figure


def _points(run: Stations | Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if isinstance(run, Sequence):
        return [(float(x), float(y)) for x, y in run]
    return [(1 / e.kept, e.score) for e in run.entries if e.score is not None and e.kept > 0]
