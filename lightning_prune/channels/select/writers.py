"""Where what a layer writes is final: after the norm that alone reads it, or at the layer itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_prune.channels.select.taps import channel_dim
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.trace.sites import module_path

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


@dataclass(frozen=True)
class Writer:
    """A convolution or linear layer that writes channels that may go.

    Attributes:
        module: itself.
        place: path of the module whose output is the layer's, final.
        groups: group of each of its output channels, int64, -1 where it stays.
        dim: the channels' dim at its input and at the place, from the end.
        inputs: channels that enter it.
    """

    module: _ConvNd | nn.Linear
    place: str
    groups: Tensor
    dim: int
    inputs: int


def writers_of(units: ChannelUnits) -> dict[str, Writer]:
    """{path: layer}, in the order of the network's modules."""
    sites, modules = units.sites(), dict(units.network.named_modules())
    norms = _norms_behind(units, modules)
    found = {}
    for path, groups in sites.items():
        module = modules[path]
        if isinstance(module, (_ConvNd, nn.Linear)):
            inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
            found[path] = Writer(module, norms.get(path, path), groups, channel_dim(module), inputs)
    return found


def _norms_behind(units: ChannelUnits, modules: dict[str, nn.Module]) -> dict[str, str]:
    """{path of a module: path of the norm that alone reads what it gives}."""
    found = {}
    for node in units.graph.program.graph.nodes:
        if node.op == "call_function" and len(node.users) == 1:
            path, reader = module_path(node)[0], module_path(next(iter(node.users)))[0]
            if reader != path and isinstance(modules.get(reader), _NORMS):
                found[path] = reader
    return found
