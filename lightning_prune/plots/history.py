"""Plots of what was logged: kept share, sparsity and thresholds over time, from memory or from a logger's file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_prune.plots.figure import new_figure

Series = Mapping[str, Sequence[tuple[float, float]]]
"""{name of a metric: its (step, value) pairs, in order}."""

_SHARES = ("kept", "soft_kept", "macs", "params", "channels")
_PER_LAYER = {
    "tau": "threshold τ on w²",
    "threshold": "threshold on |γ|",
    "sparsity": "sparsity",
    "channels": "channels",
}


def read_metrics(path: str | Path) -> dict[str, list[tuple[float, float]]]:
    """The series of a ``metrics.csv`` that Lightning's CSVLogger wrote.

    Args:
        path: the file, or the folder that it is in.

    Returns:
        {name of a metric: its (step, value) pairs}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no column ``step``.
    """
    path = Path(path)
    file = path / "metrics.csv" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}: give the metrics.csv of a CSVLogger, or the folder it is in.")
    series: dict[str, list[tuple[float, float]]] = {}
    with file.open(newline="") as lines:
        rows = csv.DictReader(lines)
        if "step" not in (rows.fieldnames or ()):
            raise ValueError(f"{file} has the columns {rows.fieldnames} and no 'step': it is not a CSVLogger's file.")
        for row in rows:
            for name, value in row.items():
                if name not in ("step", "epoch") and value:
                    series.setdefault(name, []).append((float(row["step"]), float(value)))
    return series


def from_metrics(path: str | Path) -> Any:
    """Kept share, sparsity and thresholds over time, read back from CSVLogger's ``metrics.csv``; see `over_time`."""
    return over_time(read_metrics(path))


def over_time(series: Series) -> Any:
    """What a pruning callback logged, over the steps: shares that are kept, and the numbers of each layer.

    Args:
        series: {metric, such as "prune/kept" or "prune/layer/conv1.weight/tau": its (step, value) pairs}. A validation
            accuracy is drawn beside the shares.

    Returns:
        A ``matplotlib.figure.Figure``: one axes of shares, and one for each kind of number that layers have.

    Raises:
        ValueError: no metric begins with ``prune/``.
        ModuleNotFoundError: matplotlib is not installed.
    """
    shares = {name: series[f"prune/{name}"] for name in _SHARES if f"prune/{name}" in series}
    accuracy = {name: values for name, values in series.items() if name.startswith("val") and "acc" in name}
    layers: dict[str, dict[str, Sequence[tuple[float, float]]]] = {}
    for name, values in series.items():
        if name.startswith("prune/layer/"):
            layer, _, kind = name.removeprefix("prune/layer/").rpartition("/")
            layers.setdefault(kind, {})[layer] = values
    if not shares and not layers:
        raise ValueError(f"no metric is a pruning callback's, which begin with 'prune/': {sorted(series)[:8]}.")
    kinds = [kind for kind in _PER_LAYER if kind in layers]
    figure = new_figure(4.6 * (1 + len(kinds)), 3.4)
    axes = figure.subplots(1, 1 + len(kinds), squeeze=False)[0]
    _draw(axes[0], shares | accuracy, dashed=set(accuracy))
    axes[0].set_ylabel("share that is kept")
    axes[0].set_ylim(0, 1.02)
    axes[0].legend(fontsize=7)
    for ax, kind in zip(axes[1:], kinds, strict=True):
        _draw(ax, layers[kind])
        ax.set_ylabel(f"{_PER_LAYER[kind]}, a line a layer")
        if kind in ("tau", "threshold") and any(value > 0 for line in layers[kind].values() for _, value in line):
            ax.set_yscale("log")
        if len(layers[kind]) <= 8:
            ax.legend(fontsize=6)
    for ax in axes:
        ax.set_xlabel("step")
    return figure


def _draw(ax: Any, lines: Series, dashed: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    for name, values in lines.items():
        style = "--" if name in dashed else "-"
        ax.plot([at for at, _ in values], [value for _, value in values], style, linewidth=1, label=name)
