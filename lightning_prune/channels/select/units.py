"""The channel groups of one network as units of selection: which may go, in which layers, and what belongs to them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.requests import group_scores
from lightning_prune.channels.select.scales import ScaleFactors, layers_of, reason_to_stay
from lightning_prune.channels.select.taps import Tap, taps_of
from lightning_prune.errors import ChannelError
from lightning_prune.support.patterns import check_patterns, matches

UNTRAINED = "frozen (requires_grad=False, or held by no optimizer)"
EXCLUDED = "excluded"

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class ChannelUnits:
    """The channel groups that a selection decides about. All tensors here are on the CPU.

    Attributes:
        network: what the graph was traced from.
        graph: its channel graph.
        scales: its scale factors on channels that may go, those of BatchNorms and of gates; None if there are none.
        layer: layer of each group, int64 [groups]; -1 for groups that stay.
        layers: names of what each layer stands on: norms, or layers with a weight.
        frozen: {norm or layer: why all of its channels stay}.
        held: bool [groups], groups that stay by exclusion or because they do not train; no branch takes them along.
    """

    network: nn.Module
    graph: ChannelGraph
    scales: ScaleFactors | None
    layer: Tensor
    layers: tuple[tuple[str, ...], ...]
    frozen: dict[str, str]
    held: Tensor

    @classmethod
    def of(
        cls,
        network: nn.Module,
        graph: ChannelGraph,
        *,
        exclude: Sequence[str] = (),
        trains: Callable[[Tensor], bool] | None = None,
        scales_only: bool = False,
        stay: Mapping[str, str] | None = None,
    ) -> ChannelUnits:
        """Collects them.

        Args:
            network: what the graph was traced from.
            graph: its channel graph.
            exclude: fnmatch patterns, whole or from any dot on, on names of norms (``scales_only``) or of any layers
                and tensors; their channels stay, with all that is tied to them.
            trains: whether a parameter is being trained; what belongs to one that is not stays. None: all are.
            scales_only: only groups with BatchNorm scale factors, in layers of groups with factors of the same norms.
                Else all groups in dim 0 of a weight, in layers of groups in dim 0 of the same weights.
            stay: {name of a tensor: why the channels of its dim 0 stay}.

        Raises:
            ChannelError: a pattern matches nothing, or no norm has a scale factor on a removable channel.
        """
        asked = ((graph.axes[name][0], why) for name, why in (stay or {}).items() if 0 in graph.axes.get(name, {}))
        staying = [*asked, *_excluded(graph, exclude, scales_only), *_untrained(network, graph, trains)]
        held = torch.zeros(graph.size, dtype=torch.bool)
        for ids, _ in staying:
            held[ids[ids >= 0]] = True
        scales: ScaleFactors | None = None
        with contextlib.nullcontext() if scales_only else contextlib.suppress(ChannelError):
            scales = ScaleFactors.of(network, graph, staying)
        if scales_only:
            assert scales is not None
            layer = torch.full((graph.size,), -1, dtype=torch.int64)
            layer[scales.groups] = scales.layer
            return cls(network, graph, scales, layer, scales.layers, scales.frozen, held)
        rows = {name.removesuffix(".weight"): graph.axes[name][0] for name, _ in _weights(network, graph)}
        free = {name: torch.where((ids >= 0) & ~_of(ids, held), ids, -1) for name, ids in rows.items()}
        layer, layers = layers_of(list(free), list(free.values()), graph.size)
        whole = [name for name, ids in free.items() if not bool((ids >= 0).any())]
        frozen = {name: reason_to_stay(graph, rows[name], staying) for name in whole}
        return cls(network, graph, scales, layer, layers, frozen, held)

    @property
    def size(self) -> int:
        """Number of the graph's groups."""
        return self.graph.size

    @property
    def free(self) -> Tensor:
        """The groups that may go, bool [groups]."""
        return self.layer >= 0

    def weights(self) -> dict[str, Tensor]:
        """{tensor name: parameter of 2 or more dims with groups in dim 0 that may go}."""
        free = self.free
        found = _weights(self.network, self.graph)
        return {name: p for name, p in found if bool(_of(self.graph.axes[name][0], free).any())}

    def sites(self) -> dict[str, Tensor]:
        """{module path: group of each of its output channels, int64, -1 where it stays}.

        Of convolutions, linear layers and norms with output channels that may go.
        """
        found = {}
        for path, module in self.network.named_modules():
            if isinstance(module, _LAYERS) or hasattr(module, "normalized_shape"):
                ids = _outputs(self.graph, path, module)
                if ids is not None and bool((mine := _of(ids, self.free)).any()):
                    found[path] = torch.where(mine, ids, -1)
        return found

    @cached_property
    def taps(self) -> dict[str, Tap]:
        """{name: a place where activations of channels that may go can be watched}, see `taps_of`."""
        return taps_of(self.network, self.graph, self.free, self.sites())

    def aggregate(self, values: Mapping[str, Tensor], reduce: str = "mean") -> Tensor:
        """Combines values of channels to values of groups.

        Args:
            values: {tensor name: a value for each index of dim 0, module path: for each output channel, or name of one
                of `taps`: for each channel there}.
            reduce: over all channels of a group, "mean", "max", "min" or "sum".

        Returns:
            float64 [groups], +inf for groups without a value and for those that stay.

        Raises:
            PlanError: an unknown name, a wrong shape, or NaN.
        """
        places = self.sites() | {name: tap.groups for name, tap in self.taps.items()}
        score, _ = group_scores(self.graph, values, reduce, places)
        return score.masked_fill(~self.free, torch.inf)

    def normalize(self, score: Tensor, by: Literal["mean", "norm"] = "mean") -> Tensor:
        """Divides each layer's finite scores by the mean of their absolute values, or their Euclidean norm: [groups].

        So layers compare.
        """
        out = score.clone()
        for i in range(len(self.layers)):
            mine = (self.layer == i) & score.isfinite()
            level = score[mine].abs().mean() if by == "mean" else score[mine].norm()
            out[mine] = score[mine] / (level if bool(level > 0) else 1.0)
        return out

    def from_scales(self, local: Tensor) -> Tensor:
        """Values of the groups of `scales`, [len(scales.groups)], as float64 [groups], +inf elsewhere."""
        assert self.scales is not None
        out = torch.full((self.size,), torch.inf, dtype=torch.float64)
        out[self.scales.groups.cpu()] = local.detach().double().cpu()
        return out

    def by_layer(self, values: Tensor) -> list[Tensor]:
        """Values of groups [groups], split by layer."""
        return [values[self.layer == i] for i in range(len(self.layers))]

    def members(self) -> Tensor:
        """Number of scale factors, or of rows of weights, in each group: float64 [groups], 0 where it stays."""
        out = torch.zeros(self.size, dtype=torch.float64)
        if self.scales is not None and self.layers == self.scales.layers:
            out[self.scales.groups] = self.scales.members.double()
            return out
        for name, _ in _weights(self.network, self.graph):
            ids = self.graph.axes[name][0]
            out += torch.bincount(ids[ids >= 0], minlength=self.size)
        return out.masked_fill(~self.free, 0.0)

    def proven_zero(self) -> Tensor:
        """Groups that do nothing now: bool [groups].

        All of their BatchNorm scale factors are exactly zero, and trained to be: a group that is held has proven
        nothing. Only this empties a layer; a score of zero is an estimate, and so is a gate of zero: what stands
        between the layers that it silences and the network's output is not looked at.
        """
        out = torch.zeros(self.size, dtype=torch.bool)
        if self.scales is not None:
            out[self.scales.groups] = self.scales.importance(self.scales.read().cpu()) == 0
            out[torch.cat([torch.empty(0, dtype=torch.int64), *self.scales.gated()])] = False
        return out


def _of(ids: Tensor, chosen: Tensor) -> Tensor:
    """Which channels are of chosen groups: bool, in the shape of ``ids``."""
    return (ids >= 0) & chosen[ids.clamp_min(0)] if len(chosen) else torch.zeros_like(ids, dtype=torch.bool)


def _weights(network: nn.Module, graph: ChannelGraph) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterates over (name, parameter) of 2 or more dims with channels in dim 0, shared ones once.

    A number for each channel in the shape of a weight (the gain of a standardised convolution) is none.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, dims in graph.axes.items():
        p = parameters.get(name)
        if p is not None and p.ndim >= 2 and 0 in dims and (name.endswith("weight") or p.numel() > len(p)):
            yield name, p


def _outputs(graph: ChannelGraph, path: str, module: nn.Module) -> Tensor | None:
    """Groups of a module's output channels."""
    name = f"{path}.weight" if path else "weight"
    bias = f"{path}.bias" if path else "bias"
    if not getattr(module, "transposed", False):
        return graph.axes.get(name, graph.axes.get(bias, {})).get(0)
    # The weight of a transposed convolution is [in, out / groups, ..].
    return graph.axes.get(bias, {}).get(0) if module.groups != 1 else graph.axes.get(name, {}).get(1)


def _untrained(
    network: nn.Module, graph: ChannelGraph, trains: Callable[[Tensor], bool] | None
) -> Iterator[tuple[Tensor, str]]:
    if trains is not None:
        parameters = dict(network.named_parameters(remove_duplicate=False))
        named = ((parameters[name], dims[0]) for name, dims in graph.axes.items() if name in parameters and 0 in dims)
        yield from ((ids, UNTRAINED) for p, ids in named if not trains(p))


def _excluded(graph: ChannelGraph, patterns: Sequence[str], norms: bool) -> Iterator[tuple[Tensor, str]]:
    """(groups, why) of what the patterns match."""
    names = [f"{path}.weight" for path in graph.norms] if norms else [n for n, d in graph.axes.items() if 0 in d]
    check_patterns(patterns, names, "exclude", "BatchNorm" if norms else "layer", ChannelError)
    yield from ((graph.axes[n][0], EXCLUDED) for n in names if matches(n, patterns) and 0 in graph.axes.get(n, {}))
