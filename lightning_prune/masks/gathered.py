"""Gates on shards: masked weights stand in a parameter's own shard while the network runs.

`fully_shard` gathers what the shards hold, for the forward and again for the backward. So each process masks its own
rows, nothing whole is masked or kept, and the gradient that comes back to a shard is that of the masked weight. Own
weights stand aside meanwhile; they are put back before an optimizer steps, and before anyone asks for a state dict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from lightning_prune.masks.gates import Gate, MaskGate
from lightning_prune.masks.shards import local, reshard
from lightning_prune.support.swap.class_swap import data_key

_SITE = data_key("shards")


class ShardGate(MaskGate):
    """A gate with a threshold, on this process's shard of a parameter.

    Args:
        gate: what masks a tensor.
        param: in shards.

    Attributes:
        inside: whether the masked weight stands in the place of the weight.
    """

    def __init__(self, gate: MaskGate, param: Tensor) -> None:
        super().__init__()
        self.gate, self.param = gate, param
        self.site: Site | None = None
        self._aside: Tensor | None = None
        self.inside = False

    def mask(self, w: Tensor, out: Tensor | None) -> Tensor:
        return self.gate.mask(w, out)

    def step_(self, w: Tensor, grad: Tensor, count: bool) -> Tensor:
        return self.gate.step_(self.pair(w)[0] if self.inside else w, grad, count)

    def pair(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate.pair(w) if self._aside is None or not self.inside else (self._aside, w)

    @property
    def folds(self) -> bool:
        return self.gate.folds

    def fold(self, w: Tensor, least: Tensor) -> Tensor:
        return self.gate.fold(w, least)

    def expire(self) -> None:
        """Put the weights back, those of all gates on the network."""
        if self.site is not None:
            self.site.take_out()
        self.gate.forget()

    @torch.no_grad()
    def put_in(self) -> None:
        """Put the masked weight in the place of the weight."""
        shard = local(self.param)
        if self._aside is None or self._aside.shape != shard.shape or self._aside.device != shard.device:
            with torch.inference_mode(False):  # made in validation, it must serve training too
                self._aside = torch.empty_like(shard)
        self.gate.into(self._aside.copy_(shard), shard)
        self.inside = True

    @torch.no_grad()
    def take_out(self) -> None:
        """Put the weight back."""
        if self.inside and self._aside is not None:
            local(self.param).copy_(self._aside)
        self.inside = False
        self.gate.forget()


class Site:
    """The gates on one network's shards: all are in, or none is. They go in when the network is run."""

    def __init__(self, root: nn.Module, gates: Sequence[ShardGate]) -> None:
        self.root, self.gates = root, gates
        # before fully_shard's own hooks, which gather
        self._handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(self._before_forward, prepend=True)
            for module in root.modules()
            if isinstance(module, FSDPModule)
        ]
        self._handles.append(root.register_state_dict_pre_hook(lambda *_: self.take_out()))
        for gate in gates:
            gate.site = self

    @property
    def inside(self) -> bool:
        """Whether the gates are in."""
        return any(gate.inside for gate in self.gates)

    def _before_forward(self, *_: Any) -> None:
        if not self.inside:
            reshard(self.root)  # what was gathered for an evaluation, the weights unmasked
            for gate in self.gates:
                gate.put_in()

    def take_out(self) -> None:
        """Put the weights back, and free what was gathered of the masked ones."""
        if self.inside:
            reshard(self.root)
            for gate in self.gates:
                gate.take_out()

    def close(self) -> None:
        """Put the weights back for good."""
        self.take_out()
        for handle in self._handles:
            handle.remove()
        for gate in self.gates:
            gate.site = None


def in_shards(root: nn.Module, gates: Mapping[str, Gate]) -> dict[str, Gate]:
    """The gates, those on parameters that are in shards made gates on shards.

    Raises:
        NotImplementedError: such a gate has no threshold but learns by autograd.
    """
    parameters = dict(root.named_parameters(remove_duplicate=False))
    made: dict[str, Gate] = {}
    for name, gate in gates.items():
        param = parameters.get(name)
        if isinstance(param, DTensor):
            if not isinstance(gate, MaskGate):
                raise NotImplementedError(
                    f"{name} is in shards, and its {type(gate).__name__} needs it whole: use LTPCallback or "
                    "MagnitudeCallback, or strategy='ddp'."
                )
            gate = ShardGate(gate, param)
        made[name] = gate
    return made


def settle(root: nn.Module, gates: Sequence[ShardGate]) -> None:
    """Put gates on the shards of a network; `leave` takes them off."""
    leave(root)
    if gates:
        root.__dict__[_SITE] = Site(root, gates)


def leave(root: nn.Module) -> None:
    """Take all gates off the shards of a network, the weights back in place. Nothing happens where there is none."""
    site: Site | None = root.__dict__.pop(_SITE, None)
    if site is not None:
        site.close()
