"""Where the channels of a network can be watched: at the inputs of the layers that sum over them.

Removing a channel takes it out of every sum that reads it, so what stands there is what goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.trace.sites import module_path
from lightning_prune.support.watch import Side

INPUT, OUTPUT = "input of ", "output of "
"""Before a module's path: the names of the places at its sides."""


def module_of(place: str) -> str:
    """The module's path in the name of a place at one of its sides; a bare path is itself."""
    return place.removeprefix(INPUT).removeprefix(OUTPUT)


@dataclass(frozen=True)
class Tap:
    """A place where channels pass.

    Attributes:
        module: the convolution or linear layer.
        side: of the module.
        dim: the channels' dim of the tensor there, from the end.
        groups: group of each channel, int64, -1 where it stays.
    """

    module: _ConvNd | nn.Linear
    side: Side
    dim: int
    groups: Tensor


def taps_of(network: nn.Module, graph: ChannelGraph, free: Tensor, sites: Mapping[str, Tensor]) -> dict[str, Tap]:
    """{name: place}: inputs of layers, and for groups that no layer reads, outputs.

    Queries and keys are such groups: a product of two activations reads them.

    Args:
        network: what the graph was traced from.
        graph: its channel graph.
        free: bool [groups], the groups that may go.
        sites: {module path: groups of its output channels}.
    """
    found: dict[str, Tap] = {}
    modules = dict(network.named_modules())
    for place in graph.sums:
        path = module_path(place.node)[0]
        module, groups = modules.get(path), _only(place.ids, free)
        if place.argument == "input" and isinstance(module, (_ConvNd, nn.Linear)) and bool((groups >= 0).any()):
            found[f"{INPUT}{path}"] = Tap(module, "input", channel_dim(module), groups)
    rest = free.clone()
    for tap in found.values():
        rest[tap.groups[tap.groups >= 0]] = False
    for path, ids in sites.items():
        module, groups = modules[path], _only(ids, rest)
        if isinstance(module, (_ConvNd, nn.Linear)) and bool((groups >= 0).any()):
            found[f"{OUTPUT}{path}"] = Tap(module, "output", channel_dim(module), groups)
    return found


def _only(ids: Tensor, chosen: Tensor) -> Tensor:
    return torch.where((ids >= 0) & chosen[ids.clamp_min(0)], ids, -1) if len(chosen) else torch.full_like(ids, -1)


def channel_dim(module: _ConvNd | nn.Linear) -> int:
    """Where the channels are in what enters and leaves a layer, from the end."""
    return -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)


@torch.no_grad()
def scale_readers_(network: nn.Module, taps: Mapping[str, Tap], factors: Tensor) -> list[str]:
    """Multiplies what stands at each place by a factor a group, by way of the weights there.

    Args:
        network: what the taps are of, or a copy of it.
        taps: the places, by name.
        factors: [groups], on any device.

    Returns:
        Names of places that stay as they were: their weight is no parameter of the layer, or shared by layers that read
        other channels.
    """
    modules, left, done = dict(network.named_modules()), [], dict[tuple[Tensor, str], Tensor]()
    for name, tap in taps.items():
        module: Any = modules[module_of(name)]
        factor = torch.where(tap.groups >= 0, factors.cpu()[tap.groups.clamp_min(0)], 1.0)
        weight = module._parameters.get("weight")
        if weight is None and bool((factor == 1).all()):
            continue
        if weight is None or not torch.equal(done.setdefault((weight, tap.side), factor), factor):
            left.append(name)
        elif done[weight, tap.side] is factor:
            scale = factor.to(weight)
            if tap.side == "output":
                weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
                if module.bias is not None:
                    module.bias.mul_(scale)
            elif getattr(module, "transposed", False):
                weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
            else:
                parts = weight.view(getattr(module, "groups", 1), -1, *weight.shape[1:])
                parts.mul_(scale.view(len(parts), 1, -1, *[1] * (weight.ndim - 2)))
    return left
