"""Scale factors for groups that have none: which of them can have a gate that goes into the weights in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.taps import Tap, module_of
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.trace.sites import module_path
from lightning_prune.errors import ChannelError

Scales = Literal["auto", "batchnorm", "gates"]
"""What decides about channels: BatchNorm's scale factors, gates, or gates where there is no such factor."""


def scaled_units(
    network: nn.Module,
    graph: ChannelGraph,
    *,
    exclude: Sequence[str] = (),
    trains: Callable[[Tensor], bool] | None = None,
    stay: Mapping[str, str] | None = None,
    scales: Scales = "auto",
) -> ChannelUnits:
    """The channel groups that have a scale factor, and those that a gate gives one, on the network's device.

    Where every group that may go has a BatchNorm factor, "auto" is the same as "batchnorm".

    Args:
        network, graph, trains, stay: see `ChannelUnits.of`.
        exclude: patterns on names of layers; with "batchnorm" of norms alone.
        scales: which factors count.

    Raises:
        ChannelError: a pattern matches nothing, or no group has a factor or can have a gate.
    """
    if scales == "batchnorm":
        return ChannelUnits.of(network, graph, exclude=exclude, trains=trains, stay=stay, scales_only=True)
    units = ChannelUnits.of(network, graph, exclude=exclude, trains=trains, stay=stay)
    norms = units.scales if scales == "auto" else None
    places = {name: tap.groups[tap.groups >= 0] for name, tap in units.taps.items()}
    wanted, gated = units.free.clone(), torch.zeros_like(units.free)
    wanted[norms.groups if norms is not None else []] = False
    for groups in places.values():
        gated[groups] = wanted[groups]
    refused = _refused(network, graph, units.taps, trains)
    frozen = {name: why for name, why in refused.items() if bool(wanted[places[name]].any())}
    for name in frozen:
        gated[places[name]] = False
    mine = [(gated & (units.layer == i)).nonzero().flatten() for i in range(len(units.layers))]
    layers = {names: ids for names, ids in zip(units.layers, mine, strict=True) if len(ids)}
    factors = ScaleFactors.with_gates(norms, layers, next(network.parameters()).device) if layers else norms
    if factors is None:
        why = "; ".join(f"{name}: {reason}" for name, reason in list((units.frozen | frozen).items())[:3])
        raise ChannelError(
            f"{type(network).__name__} has no channel that may be removed and has a BatchNorm scale factor, or could "
            f"have a gate: {why}"
        )
    layer = torch.full_like(units.layer, -1)
    layer[factors.groups] = factors.layer
    told = units.frozen | frozen if layers else factors.frozen
    return replace(units, scales=factors, layer=layer, layers=factors.layers, frozen=told)


def _refused(
    network: nn.Module, graph: ChannelGraph, taps: Mapping[str, Tap], trains: Callable[[Tensor], bool] | None
) -> dict[str, str]:
    """{name of a tap: why a factor at it could not go into its layer's weight}."""
    as_it_is = {
        module_path(node)[0]
        for node in graph.program.graph.nodes
        if str(node.target).startswith(("aten.conv", "aten.linear"))
        and any(getattr(weight, "op", "") == "placeholder" for weight in node.args[1:2])
    }
    holders: dict[Tensor, list[str]] = {}
    for path, module in network.named_modules():
        for p in module._parameters.values():
            if p is not None:
                holders.setdefault(p, []).append(path)
    found = {}
    for name, tap in taps.items():
        path, weight = module_of(name), tap.module._parameters.get("weight")
        prefix = name.removesuffix(path)
        if weight is None or path not in as_it_is:
            found[name] = "no gate: its layer computes its weight from others, so no factor could go into it"
        elif any(not _alike(taps.get(prefix + other), tap) for other in holders[weight]):
            found[name] = "no gate: its weight is shared by layers that read other channels"
        elif trains is not None and not trains(weight):
            found[name] = "no gate: the weight that would take the factor does not train"
    return found


def _alike(other: Any, tap: Tap) -> bool:
    return other is not None and torch.equal(other.groups, tap.groups)
