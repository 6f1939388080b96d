"""Bars of what a network costs before and after."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any

from lightning_prune.plots.figure import new_figure
from lightning_prune.report import SparsityReport

Costs = Any
"""{name: number}, a `SparsityReport`, or a dataclass whose numbers are costs."""


def cost_bars(before: Costs, after: Costs) -> Any:
    """Costs after as shares of those before, with both numbers written out.

    Args:
        before: {name: number}, a `SparsityReport`, or a dataclass of numbers (other fields, and None, are left out).
        after: the same of the pruned network. Names that only one of the two has are left out.

    Returns:
        A ``matplotlib.figure.Figure`` with two bars a cost.

    Raises:
        ValueError: the two have no cost in common, or one before is not positive.
        ModuleNotFoundError: matplotlib is not installed.
    """
    old, new = numbers_of(before), numbers_of(after)
    names = [name for name in old if name in new]
    if not names or any(old[name] <= 0 for name in names):
        raise ValueError(f"costs before {old} and after {new} need a name in common, and positive numbers before.")
    figure = new_figure(max(4.0, 1.1 * len(names) + 1.5), 3.4)
    ax = figure.subplots()
    for offset, label, costs in ((-0.2, "before", old), (0.2, "after", new)):
        at = [i + offset for i in range(len(names))]
        bars = ax.bar(at, [costs[name] / old[name] for name in names], width=0.4, label=label)
        ax.bar_label(bars, [_short(costs[name]) for name in names], fontsize=7)
    ax.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=20, fontsize=8)
    ax.set_ylabel("share of before")
    ax.set_ylim(0, 1.12 * max(1.0, *(new[name] / old[name] for name in names)))
    ax.legend(fontsize=7, loc="lower right")
    return figure


def numbers_of(costs: Costs) -> dict[str, float]:
    """The numbers of a mapping, of a `SparsityReport`, or of a dataclass's fields."""
    if isinstance(costs, SparsityReport):
        return {"parameters": costs.parameters, "non-zero weights": costs.prunable - costs.zeros}
    if is_dataclass(costs):
        costs = {field.name: getattr(costs, field.name) for field in fields(costs)}
    return {name: float(v) for name, v in costs.items() if isinstance(v, Real) and not isinstance(v, bool)}


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"
