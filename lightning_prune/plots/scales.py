"""Histograms of scale factors with their thresholds, as the MRTS paper's Figures 3 and 6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_prune.plots.figure import new_figure


def scale_histograms(
    rows: Mapping[str, Mapping[str, Tensor]],
    thresholds: Mapping[str, float | Mapping[str, float]] | None = None,
    bins: int = 40,
) -> Any:
    """Histograms of |γ|: a row for each method and a column for each layer, as the paper's Figures 3 and 6.

    Args:
        rows: {method: {layer: scale factors, [channels]}}; every method has the same layers.
        thresholds: {method: threshold} or {method: {layer: threshold}}, drawn as lines.
        bins: of each histogram, over the range of its column.

    Returns:
        A ``matplotlib.figure.Figure``; ``savefig`` writes it.

    Raises:
        ValueError: there is nothing to plot, or methods differ in their layers.
        ModuleNotFoundError: matplotlib is not installed.
    """
    layers = list(next(iter(rows.values()), {}))
    if not layers or any(list(row) != layers for row in rows.values()):
        raise ValueError(f"every method needs the same layers, at least one; got {[list(r) for r in rows.values()]}.")
    figure = new_figure(3.6 * len(layers), 2.4 * len(rows))
    axes = figure.subplots(len(rows), len(layers), squeeze=False, sharex="col")
    for j, layer in enumerate(layers):
        values = {method: row[layer].detach().float().abs().cpu() for method, row in rows.items()}
        top = max((float(v.max()) for v in values.values() if len(v)), default=0.0) or 1.0
        for i, (method, value) in enumerate(values.items()):
            ax = axes[i][j]
            ax.hist(value.numpy(), bins=bins, range=(0.0, top))
            given = (thresholds or {}).get(method)
            threshold = given.get(layer) if isinstance(given, Mapping) else given
            if threshold is not None:
                ax.axvline(threshold, color="tab:red", linewidth=1)
            ax.set_title(f"{method}: {layer}", fontsize=9)
            ax.set_ylabel("channels")
            if i == len(rows) - 1:
                ax.set_xlabel("scale factor |γ|")
    return figure
