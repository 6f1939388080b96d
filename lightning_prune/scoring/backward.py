"""Importance that is known at the end of a network, carried back through the weights that read each channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lightning_prune.channels.graph.modes import OUTPUT
from lightning_prune.channels.select.taps import Tap, module_of
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.trace.sites import module_path
from lightning_prune.scoring.contributions import Reader


def read_importance(layer: Reader, outputs: Tensor) -> Tensor:
    """``|W|ᵀ s``, summed over the positions of the kernel: what the inputs of a layer are worth to its outputs.

    Args:
        layer: that reads.
        outputs: s, importance of its output channels, float64 [out].

    Returns:
        [in].
    """
    weight = layer.weight.detach().double().abs().cpu()
    weight = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    groups = getattr(layer, "groups", 1)
    parts, given = weight.view(groups, -1, weight.shape[1]), outputs.view(groups, -1)
    equation = "gio,go->gi" if getattr(layer, "transposed", False) else "goi,go->gi"
    return torch.einsum(equation, parts, given).flatten()


def carried_back(units: ChannelUnits, last: Mapping[str, Callable[[], Tensor]]) -> Tensor:
    """Importance of groups, from those that the network's last layers read back to the first: float64 [groups].

    A group that several layers read has the sum of what it is worth to each: a shortcut hands its importance on. An
    output that stays (before a norm over channels, say) is worth 1, as nothing is known of it. +inf for groups that
    stay, and for those that no layer reads one by one.

    Args:
        units: the network's channel groups.
        last: {name of a tap: importance of its channels, [C]}, asked where the layer writes the network's output.
    """
    nodes = units.graph.program.graph.nodes
    order = {module_path(node)[0]: i for i, node in enumerate(nodes) if node.op == "call_function"}
    score, read = torch.zeros(units.size, dtype=torch.float64), torch.zeros(units.size, dtype=torch.bool)
    taps, outputs = [(name, tap) for name, tap in units.taps.items() if tap.side == "input"], units.sites()
    for name, tap in sorted(taps, key=lambda item: -order.get(module_of(item[0]), 0)):
        mine = tap.groups >= 0
        worth = last[name]() if name in last and _ends(units, tap, module_of(name)) else None
        if worth is None:
            ids = outputs.get(module_of(name), torch.full((_width(tap.module),), -1))
            worth = read_importance(tap.module, torch.where(ids >= 0, score[ids.clamp_min(0)], 1.0))
        score.index_add_(0, tap.groups[mine], worth[mine])
        read[tap.groups[mine]] = True
    return score.masked_fill(~(units.free & read), torch.inf)


def _width(layer: Reader) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _ends(units: ChannelUnits, tap: Tap, path: str) -> bool:
    """Whether a layer writes the network's output."""
    ids = units.graph.axes.get(f"{path}.weight", {}).get(0)
    return ids is not None and any(OUTPUT in units.graph.frozen_reasons[-1 - i] for i in ids[ids < 0].unique().tolist())
