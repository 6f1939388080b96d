"""Putting gates on a module and taking them off, without registering anything in it.

The class of each gated layer is swapped for one whose weight is a property, or whose forward begins or ends in a gate.
Parameters, their order, ``state_dict`` keys, optimizer groups, averaged copies and DDP buckets stay those of the dense
model, and every reader of ``.weight`` sees the masked weight (``F.linear(x, self.qkv.weight)`` too). Copies and pickles
have no gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_prune.channels.select.taps import INPUT, OUTPUT
from lightning_prune.masks.gates import Gate
from lightning_prune.masks.gathered import ShardGate, leave, settle
from lightning_prune.support.swap.class_swap import data_key, is_swapped, recipe, restore, swap

_RECIPE = "gates"
_GATES = data_key(_RECIPE)
_SIDES = (INPUT, OUTPUT)  # stand beside the names of a module's parameters, none of which has a space


@recipe(_RECIPE, copied=False)
def _gated(base: type[nn.Module], *names: str) -> dict[str, Any]:
    members: dict[str, Any] = {name: _masked_property(name) for name in names if name not in _SIDES}
    if any(side in names for side in _SIDES):

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            gates = self.__dict__[_GATES]
            if INPUT in gates:
                args = (gates[INPUT](args[0]), *args[1:])
            out = base.forward(self, *args, **kwargs)
            return gates[OUTPUT](out) if OUTPUT in gates else out

        members["forward"] = forward
    return members


def _masked_property(name: str) -> property:
    def masked(self: nn.Module) -> Any:
        param = self._parameters[name]
        gate: Gate | None = self.__dict__[_GATES].get(name)
        return param if gate is None or param is None else gate(param)

    return property(masked)


def attach(root: nn.Module, gates: Mapping[str, Gate]) -> None:
    """Put gates on a module, in place of those that are on it.

    Args:
        root: the module.
        gates: by the name of a parameter below ``root``, which is gated wherever it is held (ties), or by the path of a
            module, whose output (a tensor) is gated, or by "input of" and its path: its first positional argument.

    Raises:
        ValueError: a name is neither.
    """
    settle(root, [gate for gate in gates.values() if isinstance(gate, ShardGate)])
    gates = {name: gate for name, gate in gates.items() if not isinstance(gate, ShardGate)}
    parameters = dict(root.named_parameters(remove_duplicate=False))
    by_param = {parameters[name]: gate for name, gate in gates.items() if name in parameters}
    wanted: dict[nn.Module, dict[str, Gate]] = {}
    places = set[str]()
    for path, module in root.named_modules():
        for attribute, param in module._parameters.items():
            if param is not None and param in by_param:
                wanted.setdefault(module, {})[attribute] = by_param[param]
        for side, name in ((OUTPUT, path), (OUTPUT, OUTPUT + path), (INPUT, INPUT + path)):
            if name in gates:
                wanted.setdefault(module, {})[side] = gates[name]
                places.add(name)
    for name in gates:
        if name not in parameters and name not in places:
            raise ValueError(f"a gate is for {name!r}, which is no parameter and no module of {type(root).__name__}.")
    for module, by_name in wanted.items():
        swap(module, _RECIPE, *sorted(by_name), data=by_name)


def is_attached(root: nn.Module) -> bool:
    """Whether any layer below ``root`` is gated."""
    return any(is_swapped(module, _RECIPE) for module in root.modules())


def detach(root: nn.Module) -> None:
    """Give every gated layer below ``root`` its own class back. Nothing happens where no gate is."""
    leave(root)
    for module in root.modules():
        restore(module, _RECIPE)
