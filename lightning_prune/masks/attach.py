"""Putting gates on a module and taking them off, without registering anything in it.

The class of each gated layer becomes a cached subclass whose weight is a property. Parameters, their order,
``state_dict`` keys, optimizer groups, averaged copies and DDP buckets stay those of the dense model, and every reader
of ``.weight`` sees the masked weight (``F.linear(x, self.qkv.weight)`` too). Copies and pickles have the original
class.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import nn

from lightning_prune.masks.gates import Gate
from lightning_prune.masks.targets import Target

_GATES = "_lightning_prune_gates"


def _masked_property(name: str) -> property:
    def masked(self: nn.Module) -> Any:
        param = self._parameters[name]
        gate: Gate | None = self.__dict__[_GATES].get(name)
        return param if gate is None or param is None else gate(param)

    return property(masked)


@cache
def _gated_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    def reduce_as_base(self: nn.Module, protocol: Any) -> Any:
        getstate = getattr(base, "__getstate__", None)
        state = dict(getstate(self) if getstate is not None else self.__dict__)
        state.pop(_GATES, None)
        return copyreg._reconstructor, (base, object, None), state  # type: ignore[attr-defined]

    namespace: dict[str, Any] = {name: _masked_property(name) for name in names}
    namespace |= {
        "__reduce_ex__": reduce_as_base,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_lightning_prune_base": base,
    }
    return type(base.__name__, (base,), namespace)


def _base_class(module: nn.Module) -> type[nn.Module]:
    base: type[nn.Module] = type(module).__dict__.get("_lightning_prune_base", type(module))
    return base


def attach(targets: Iterable[Target], gates: Iterable[Gate]) -> None:
    """Put one gate on each target, at every place that holds its parameter. Attaching anew replaces the old gates."""
    wanted: dict[nn.Module, dict[str, Gate]] = {}
    for target, gate in zip(targets, gates, strict=True):
        for module, name in target.owners:
            wanted.setdefault(module, {})[name] = gate
    for module, by_name in wanted.items():
        module.__class__ = _gated_class(_base_class(module), tuple(sorted(by_name)))  # type: ignore[arg-type]
        module.__dict__[_GATES] = by_name


def is_attached(root: nn.Module) -> bool:
    """Whether any layer below ``root`` is gated."""
    return any(_base_class(m) is not type(m) for m in root.modules())


def detach(root: nn.Module) -> None:
    """Give every gated layer below ``root`` its own class back. Nothing happens where no gate is."""
    for module in root.modules():
        base = _base_class(module)
        if base is not type(module):
            module.__class__ = base
        module.__dict__.pop(_GATES, None)
