"""Plots of pruned weights: each layer's sparsity and threshold, and weights before against after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.plots.figure import label_layers, new_figure
from lightning_prune.report import SparsityReport, sparsity_report

_POINTS = 20_000  # of one scatter; more cannot be told apart


def layer_sparsity(
    report: SparsityReport | nn.Module | Mapping[str, float], thresholds: Mapping[str, float] | None = None
) -> Any:
    """A bar a layer: its share of zeros, with the share of all as a line; and below, its threshold on w².

    Args:
        report: a report, a model to report on, or {layer: sparsity}.
        thresholds: {layer: τ, in units of w²}; layers that it lacks have none.

    Returns:
        A ``matplotlib.figure.Figure`` with one or two axes.

    Raises:
        ValueError: there is no layer.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if isinstance(report, nn.Module):
        report = sparsity_report(report)
    if isinstance(report, SparsityReport):
        shares, whole = {layer.name: layer.sparsity for layer in report.layers}, report.sparsity
    else:
        shares, whole = dict(report), None
    if not shares:
        raise ValueError("there is no layer to plot: give a report of a model with conv or linear weights.")
    names = list(shares)
    figure = new_figure(max(4.0, 0.22 * len(names) + 1.5), 3.2 if thresholds is None else 5.0)
    axes = figure.subplots(1 if thresholds is None else 2, 1, squeeze=False, sharex=True)[:, 0]
    axes[0].bar(range(len(names)), [shares[name] for name in names])
    axes[0].set_ylim(0, 1)
    axes[0].set_ylabel("sparsity")
    if whole is not None:
        axes[0].axhline(whole, color="tab:red", linewidth=1, label=f"all layers: {whole:.1%}")
        axes[0].legend(fontsize=7, loc="lower right")
    if thresholds is not None:
        there = [(i, thresholds[name]) for i, name in enumerate(names) if name in thresholds]
        axes[1].plot([i for i, _ in there], [tau for _, tau in there], "o", markersize=4, color="tab:orange")
        axes[1].set_ylabel("threshold τ on w²")
        if any(tau > 0 for _, tau in there):
            axes[1].set_yscale("log")
    label_layers(axes[-1], names)
    return figure


def weights_before_after(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], thresholds: Mapping[str, float] | None = None
) -> Any:
    """Each layer's weights before against after, as the LTP paper's Figure 1.

    A method whose weights can cross the threshold fills the band around it; one that stalls leaves a gap there.

    Args:
        before: {layer: weights before pruning}.
        after: {layer: the same weights after}, of the same shapes.
        thresholds: {layer: τ, in units of w²}, drawn as lines at ±√τ.

    Returns:
        A ``matplotlib.figure.Figure`` with one axes a layer. Of large layers, evenly spaced weights are drawn.

    Raises:
        ValueError: the two have other layers or shapes, or none.
        ModuleNotFoundError: matplotlib is not installed.
    """
    shapes = [{name: tuple(w.shape) for name, w in weights.items()} for weights in (before, after)]
    if not before or shapes[0] != shapes[1]:
        raise ValueError(f"weights before and after need the same layers and shapes, at least one; got {shapes}.")
    columns = min(4, len(before))
    lines = -(-len(before) // columns)
    figure = new_figure(3.2 * columns, 3.0 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for ax, (name, weights) in zip(axes, before.items(), strict=False):
        ax.plot(_some(weights), _some(after[name]), ".", markersize=1.5, alpha=0.5)
        if thresholds is not None and name in thresholds:
            for side in (-1, 1):
                ax.axvline(side * thresholds[name] ** 0.5, color="tab:red", linewidth=1)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("weight before")
        ax.set_ylabel("weight after")
    for ax in axes[len(before) :]:
        ax.remove()
    return figure


def _some(weights: Tensor) -> Any:
    flat = weights.detach().float().flatten().cpu()
    if len(flat) > _POINTS:
        flat = flat[torch.linspace(0, len(flat) - 1, _POINTS).long()]
    return flat.numpy()
