"""Putting gates on a module and taking them off, without registering anything in it.

The class of each gated layer is swapped for one whose weight is a property, or whose forward ends in a gate.
Parameters, their order, ``state_dict`` keys, optimizer groups, averaged copies and DDP buckets stay those of the dense
model, and every reader of ``.weight`` sees the masked weight (``F.linear(x, self.qkv.weight)`` too). Copies and pickles
have no gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_prune.masks.gates import Gate
from lightning_prune.support.class_swap import data_key, is_swapped, recipe, restore, swap

_RECIPE = "gates"
_GATES = data_key(_RECIPE)
_OUTPUT = ""  # stands beside the names of a module's parameters


@recipe(_RECIPE, copied=False)
def _gated(base: type[nn.Module], *names: str) -> dict[str, Any]:
    members: dict[str, Any] = {name: _masked_property(name) for name in names if name != _OUTPUT}
    if _OUTPUT in names:

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.__dict__[_GATES][_OUTPUT](base.forward(self, *args, **kwargs))

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
            module, whose output (a tensor) is gated.

    Raises:
        ValueError: a name is neither.
    """
    parameters = dict(root.named_parameters(remove_duplicate=False))
    by_param = {parameters[name]: gate for name, gate in gates.items() if name in parameters}
    wanted: dict[nn.Module, dict[str, Gate]] = {}
    for path, module in root.named_modules():
        for attribute, param in module._parameters.items():
            if param is not None and param in by_param:
                wanted.setdefault(module, {})[attribute] = by_param[param]
        if path in gates:
            wanted.setdefault(module, {})[_OUTPUT] = gates[path]
    for name in gates:
        if name not in parameters and name not in {path for path, _ in root.named_modules()}:
            raise ValueError(f"a gate is for {name!r}, which is no parameter and no module of {type(root).__name__}.")
    for module, by_name in wanted.items():
        swap(module, _RECIPE, *sorted(by_name), data=by_name)


def is_attached(root: nn.Module) -> bool:
    """Whether any layer below ``root`` is gated."""
    return any(is_swapped(module, _RECIPE) for module in root.modules())


def detach(root: nn.Module) -> None:
    """Give every gated layer below ``root`` its own class back. Nothing happens where no gate is."""
    for module in root.modules():
        restore(module, _RECIPE)
