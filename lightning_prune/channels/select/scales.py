"""The scale factors of a model as one vector, and the channel groups that they decide about.

A channel group may hold several scale factors: those of all norms on a residual stream, or of a conv, the depthwise
conv behind it and so on. They decide together: the *importance* of a group is the root mean square of its factors, and
what changes it scales its factors alike. The importance of a group with one factor is that factor.

Groups that hold factors of the same norms form a *layer*: the unit that gets one threshold. A group without a norm may
have a factor that is no parameter of the model, a gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.errors import ChannelError
from lightning_prune.functional.ltp import at_least_float32


@dataclass(frozen=True)
class ScaleFactors:
    """Scale factors of removable channels, read and written in place.

    Attributes:
        params: the norms' weights that have removable channels.
        betas: their biases.
        names: their norms.
        groups: the graph's number of each group, int64 [groups].
        slot: group of each factor, int64 [factors]; `len(groups)` for those that stay.
        members: number of factors in each group, int64 [groups].
        layer: layer of each group, int64 [groups].
        layers: the norms that each layer stands on.
        frozen: norms without a removable channel, with the reason.
        gates: those of ``params``, at their end, that are no norm's: see `with_gates`.
    """

    params: tuple[Tensor, ...]
    betas: tuple[Tensor, ...]
    names: tuple[str, ...]
    groups: Tensor
    slot: Tensor
    members: Tensor
    layer: Tensor
    layers: tuple[tuple[str, ...], ...]
    frozen: dict[str, str]
    gates: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, stay: Sequence[tuple[Tensor, str]] = ()) -> ScaleFactors:
        """Collects them; index tensors are on the CPU, see `to`. stay: (groups that stay, where not negative; why).

        Raises:
            ChannelError: no norm has a scale factor on a removable channel.
        """
        params: list[nn.Parameter] = []
        names: list[str] = []
        ids: list[Tensor] = []
        frozen: dict[str, str] = {}
        held = torch.cat([torch.empty(0, dtype=torch.int64), *(where[where >= 0] for where, _ in stay)])
        for name in graph.norms:
            vector, weight = graph.scale_ids(name), model.get_parameter(f"{name}.weight")
            free = vector if vector is None or not len(held) else vector.masked_fill(torch.isin(vector, held), -1)
            if free is None or not bool((free >= 0).any()):
                frozen[name] = reason_to_stay(graph, vector, stay) if len(weight) else "none of its channels is left"
            elif not any(weight is p for p in params):  # else a norm under two names
                params.append(weight)
                names.append(name)
                ids.append(free)
        if not params:
            raise ChannelError(
                f"{type(model).__name__} has no BatchNorm scale factor on a channel that may be removed "
                f"({len(graph.norms)} BatchNorms with scale factors, {len(frozen)} of them frozen)"
                + "".join(f"; {name}: {reason}" for name, reason in list(frozen.items())[:3])
            )
        flat = torch.cat(ids)
        groups = flat[flat >= 0].unique()
        slot = torch.searchsorted(groups, flat.clamp_min(0)).masked_fill(flat < 0, len(groups))
        members = torch.bincount(slot, minlength=len(groups) + 1)[:-1]
        layer, layers = layers_of(names, slot.split([len(v) for v in ids]), len(groups))
        betas = tuple(model.get_parameter(f"{name}.bias") for name in names)
        return cls(tuple(params), betas, tuple(names), groups, slot, members, layer, layers, frozen)

    @classmethod
    def with_gates(
        cls, norms: ScaleFactors | None, layers: Mapping[tuple[str, ...], Tensor], device: torch.device
    ) -> ScaleFactors:
        """The factors of norms, and for each group of further layers a trainable factor of its own, which starts at 1.

        Such factors have no bias: zeros stand for it.

        Args:
            norms: index tensors on the CPU; None: there are none.
            layers: {names of what a layer stands on: its groups, int64, none of them in ``norms``}.
            device: of the new factors.
        """
        if norms is None:
            nothing = torch.empty(0, dtype=torch.int64)
            norms = cls((), (), (), nothing, nothing, nothing, nothing, (), {})
        groups = torch.cat([norms.groups, *layers.values()])
        gates = tuple(torch.ones(len(ids), device=device, requires_grad=True) for ids in layers.values())
        own = torch.arange(len(norms.groups), len(groups))
        number = torch.cat([torch.full_like(ids, len(norms.layers) + i) for i, ids in enumerate(layers.values())])
        return cls(
            params=(*norms.params, *gates),
            betas=(*norms.betas, *(torch.zeros_like(gate, requires_grad=False) for gate in gates)),
            names=(*norms.names, *(names[0] for names in layers)),
            groups=groups,
            slot=torch.cat([torch.where(norms.slot < len(norms.groups), norms.slot, len(groups)), own]),
            members=torch.cat([norms.members, torch.ones_like(own)]),
            layer=torch.cat([norms.layer, number]),
            layers=(*norms.layers, *layers),
            frozen=norms.frozen,
            gates=gates,
        )

    def gated(self) -> list[Tensor]:
        """The graph's number of the group of each factor of each gate, int64."""
        sizes = [len(gate) for gate in self.gates]
        return list(self.groups[len(self.groups) - sum(sizes) :].split(sizes)) if sizes else []

    def gate_values(self, size: int) -> Tensor:
        """What gates multiply each of the graph's groups by, 1 where there is none: float32 [size], on the CPU."""
        values = torch.ones(size)
        for gate, ids in zip(self.gates, self.gated(), strict=True):
            values[ids.cpu()] = gate.detach().cpu()
        return values

    def to(self, device: torch.device) -> ScaleFactors:
        """The same with index tensors on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("groups", "slot", "members", "layer")}
        return ScaleFactors(**{**vars(self), **moved})

    def read(self) -> Tensor:
        """All factors, float32 or wider [factors]; a copy."""
        return _flat(self.params)

    def write(self, factors: Tensor, lost: Tensor | None = None) -> None:
        """Puts factors [factors] into the norms, in place; what their dtype rounds off goes to ``lost`` [factors]."""
        _put(self.params, factors, lost)

    def per_param(self, values: Sequence[float]) -> Tensor:
        """A value of each norm for each of its factors, [factors]."""
        device = self.slot.device  # is not sent a list, which would wait for it
        if len({*values}) == 1:
            return torch.full((len(self.slot),), float(values[0]), device=device)
        pairs = zip(self.params, values, strict=True)
        return torch.cat([torch.full((p.numel(),), float(value), device=device) for p, value in pairs])

    def read_betas(self) -> Tensor:
        """The norms' biases, in the order of the factors [factors]; a copy."""
        return _flat(self.betas)

    def write_betas(self, betas: Tensor, lost: Tensor | None = None) -> None:
        """Puts biases [factors] into the norms, in place; what their dtype rounds off goes to ``lost`` [factors]."""
        _put(self.betas, betas, lost)

    def importance(self, factors: Tensor) -> Tensor:
        """Root mean square of each group's factors, [groups]."""
        total = torch.zeros(len(self.groups) + 1, dtype=factors.dtype, device=factors.device)
        return (total.index_add_(0, self.slot, factors * factors)[:-1] / self.members).sqrt()

    def spread(self, values: Tensor, frozen: float) -> Tensor:
        """A value of each group [groups] for each of its factors [factors]; ``frozen`` for frozen ones."""
        return torch.cat([values, values.new_full((1,), frozen)])[self.slot]

    def by_layer(self, values: Tensor) -> list[Tensor]:
        """Values of groups [groups], split by layer."""
        return [values[self.layer == i] for i in range(len(self.layers))]

    def join(self, parts: list[Tensor]) -> Tensor:
        """The opposite of `by_layer`."""
        out = parts[0].new_empty(len(self.groups))
        for i, part in enumerate(parts):
            out[self.layer == i] = part
        return out


def reason_to_stay(graph: ChannelGraph, ids: Tensor | None, stay: Sequence[tuple[Tensor, str]]) -> str:
    """Why none of the channels of some groups may go. stay: (groups that stay, why)."""
    if ids is None:
        return "it has one channel"
    held = [why for where, why in stay if bool(torch.isin(ids[ids >= 0], where).any())]
    return held[0] if held else "; ".join(graph.frozen_reasons[-1 - int(ids[0])])


def _flat(params: Sequence[Tensor]) -> Tensor:
    return at_least_float32(torch.cat([p.detach() for p in params]))


def _put(params: Sequence[Tensor], values: Tensor, lost: Tensor | None) -> None:
    tensors = [p.detach() for p in params]
    torch._foreach_copy_(tensors, list(values.split([t.numel() for t in tensors])))
    if lost is not None and any(t.dtype != values.dtype for t in tensors):
        # A step below half a unit in the last place would be lost in bfloat16, every time anew.
        torch.sub(values, torch.cat(tensors), out=lost)


def layers_of(names: Sequence[str], held: Sequence[Tensor], size: int) -> tuple[Tensor, tuple[tuple[str, ...], ...]]:
    """Groups that have channels in the same tensors form a layer; held: the groups of each named tensor's channels.

    Returns:
        (layer of each group, int64 [size], -1 for groups that no tensor has; names of each layer's tensors)
    """
    count = max(len(held), 1)
    free = [ids[(ids >= 0) & (ids < size)] for ids in held]
    pairs = torch.cat([torch.empty(0, dtype=torch.int64), *(ids * count + i for i, ids in enumerate(free))]).unique()
    group, tensor = pairs // count, pairs % count
    # Groups of the same tensors have the same sum of random numbers of 62 bits, one of each tensor.
    marks = torch.randint(1 << 62, (count,), generator=torch.Generator().manual_seed(0))
    used, place = torch.zeros(size, dtype=torch.int64).index_add_(0, group, marks[tensor]).unique(return_inverse=True)
    first = torch.full((len(used),), size).scatter_reduce_(0, place, torch.arange(size), "amin")
    starts, numbers = torch.searchsorted(group, torch.arange(size + 1)).tolist(), tensor.tolist()
    runs = [numbers[starts[g] : starts[g + 1]] for g in first.tolist()]
    order = [n for n in first.argsort().tolist() if runs[n]]  # by the first group of each
    number = torch.full((len(used),), -1)
    number[order] = torch.arange(len(order))
    return number[place], tuple(tuple(names[i] for i in runs[n]) for n in order)
