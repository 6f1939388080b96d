"""The means of channels that go, added to the biases behind the layers that read them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_prune.channels.analysis.constants import bias_behind
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.propagate import describe
from lightning_prune.channels.graph.vectors import kept_mask
from lightning_prune.channels.trace.sites import module_path


def contribution(layer: nn.Module, means: Tensor) -> Tensor | None:
    """What constant input channels add to a layer's outputs, away from zero padding; None for a transposed convolution.

    Args:
        layer: a convolution or a linear layer.
        means: of its input channels, [in].

    Returns:
        float64 [out].
    """
    weight = layer.get_parameter("weight").detach().double()
    if getattr(layer, "transposed", False):
        return None
    groups = int(getattr(layer, "groups", 1))
    table = weight.reshape(*weight.shape[:2], -1).sum(2).view(groups, len(weight) // groups, -1)
    return (table @ means.double().view(groups, -1, 1)).flatten()


def fold_means(
    network: nn.Module, graph: ChannelGraph, keep: Tensor, means: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What the means of the groups that do not stay add to the biases behind them: {tensor name: what}, and notes.

    Args:
        network: what the graph was traced from.
        graph: its channel graph.
        keep: bool [groups], what stays.
        means: {path of a convolution or linear layer: means of its input's channels [in]}.
    """
    names = graph.program.states
    folds: dict[str, Tensor] = {}
    without: list[str] = []
    done: set[str] = set()
    for place in graph.sums:
        path = module_path(place.node)[0]
        if path not in means or place.argument != "input" or path in done:
            continue
        done.add(path)
        gone = ~kept_mask(place.ids, keep).to(means[path].device)
        added = contribution(network.get_submodule(path), torch.where(gone, means[path], 0.0))
        target, sign = bias_behind(place.node, names)
        if not bool(gone.any()):
            continue
        if target is None or added is None:
            without.append(describe(place.node))
        else:
            folds[target] = folds.get(target, torch.zeros_like(added)) + sign * added
    more = f", and in {len(without) - 1} more places" if len(without) > 1 else ""
    return folds, (
        f"no bias and no BatchNorm takes up the means of what goes at {without[0]}{more}",
    ) if without else ()
