"""Plots, one call each; every one returns a ``matplotlib.figure.Figure``.

They need matplotlib: ``pip install "lightning-prune[plots]"``. None uses pyplot, so nothing is shown or kept open.
"""

from lightning_prune.plots.channels import channel_graph
from lightning_prune.plots.costs import cost_bars
from lightning_prune.plots.history import from_metrics, over_time, read_metrics
from lightning_prune.plots.scales import scale_histograms
from lightning_prune.plots.tradeoff import accuracy_against_compression
from lightning_prune.plots.weights import layer_sparsity, weights_before_after

__all__ = [
    "accuracy_against_compression",
    "channel_graph",
    "cost_bars",
    "from_metrics",
    "layer_sparsity",
    "over_time",
    "read_metrics",
    "scale_histograms",
    "weights_before_after",
]
