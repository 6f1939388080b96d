"""Putting gates on a module and taking them off, without registering anything in it.

The class of each gated layer is swapped for one whose weight is a property. Parameters, their order, ``state_dict``
keys, optimizer groups, averaged copies and DDP buckets stay those of the dense model, and every reader of ``.weight``
sees the masked weight (``F.linear(x, self.qkv.weight)`` too). Copies and pickles have no gates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_prune.masks.gates import Gate
from lightning_prune.masks.targets import Target
from lightning_prune.support.class_swap import data_key, is_swapped, recipe, restore, swap

_RECIPE = "gates"
_GATES = data_key(_RECIPE)


@recipe(_RECIPE, copied=False)
def _gated(base: type[nn.Module], *names: str) -> dict[str, Any]:
    return {name: _masked_property(name) for name in names}


def _masked_property(name: str) -> property:
    def masked(self: nn.Module) -> Any:
        param = self._parameters[name]
        gate: Gate | None = self.__dict__[_GATES].get(name)
        return param if gate is None or param is None else gate(param)

    return property(masked)


def attach(targets: Iterable[Target], gates: Iterable[Gate]) -> None:
    """Put one gate on each target, at every place that holds its parameter. Attaching anew replaces the old gates."""
    wanted: dict[nn.Module, dict[str, Gate]] = {}
    for target, gate in zip(targets, gates, strict=True):
        for module, name in target.owners:
            wanted.setdefault(module, {})[name] = gate
    for module, by_name in wanted.items():
        swap(module, _RECIPE, *sorted(by_name), data=by_name)


def is_attached(root: nn.Module) -> bool:
    """Whether any layer below ``root`` is gated."""
    return any(is_swapped(module, _RECIPE) for module in root.modules())


def detach(root: nn.Module) -> None:
    """Give every gated layer below ``root`` its own class back. Nothing happens where no gate is."""
    for module in root.modules():
        restore(module, _RECIPE)
