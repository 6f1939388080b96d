"""What all plots share: a figure without pyplot's state, and the error where matplotlib is missing."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import Any

FROZEN = "0.75"  # the grey of what may not be pruned


def new_figure(width: float, height: float) -> Any:
    """An empty ``matplotlib.figure.Figure`` of a size in inches, which pyplot does not know of.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('plots need matplotlib: pip install "lightning-prune[plots]"') from error
    return _picture(Figure)(figsize=(min(width, 60.0), min(height, 60.0)), layout="constrained")


@cache
def _picture(figure_class: Any) -> Any:
    """The class of figures that notebooks show by themselves, though pyplot does not know of them."""

    class Picture(figure_class):
        def _repr_png_(self) -> bytes:
            file = BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Picture


def label_layers(ax: Any, names: list[str]) -> None:
    """Names of layers under bars at 0, 1, 2, ..."""
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    ax.set_xlim(-0.6, len(names) - 0.4)
