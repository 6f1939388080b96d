"""Other code for a module object by a swap of its class, and its own class again.

A recipe says what the members of a cached subclass are. Nothing is registered in the module: its parameters, their
order, names and hooks stay. Swaps by several recipes lie upon each other, and each is taken back alone.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import nn

PREFIX = "_lightning_prune_"
"""Starts the name of every attribute that this package puts on a user's module or on its class."""

_BASE = PREFIX + "base"


class _Swap(NamedTuple):
    """What a made class remembers."""

    base: type[nn.Module]
    recipe: str
    args: tuple[Hashable, ...]


_MEMBERS: dict[str, Callable[..., Mapping[str, Any]]] = {}
_COPIED: set[str] = set()


def recipe(name: str, *, copied: bool) -> Callable[[Callable[..., Mapping[str, Any]]], Callable[..., Any]]:
    """Registers a recipe: a function (base class, \\*args) -> {name: member of the subclass}.

    With ``copied``, copies and pickles run the swapped code too; else they have the class and the state without it.
    """

    def register(members: Callable[..., Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
        _MEMBERS[name] = members
        if copied:
            _COPIED.add(name)
        return members

    return register


def data_key(name: str) -> str:
    """Where in a module's ``__dict__`` the data of a swap by this recipe is."""
    return PREFIX + name


def swap(module: nn.Module, name: str, *args: Hashable, data: Any = None) -> None:
    """Makes a module run the code of a recipe, in place of an earlier swap by the same one.

    The recipe's function gets ``args``; its members find ``data``, unless None, in ``__dict__`` under `data_key`.
    """
    restore(module, name)
    kind: Any = type(module)
    module.__class__ = _subclass(kind, name, args)
    if data is not None:
        module.__dict__[data_key(name)] = data


def restore(module: nn.Module, name: str) -> None:
    """Takes a swap by this recipe back, from under others too. Nothing happens where there is none."""
    if not is_swapped(module, name):
        return
    kind: Any = original_class(module)
    for other in reversed(_swaps(module)):
        if other.recipe != name:
            kind = _subclass(kind, other.recipe, other.args)
    module.__class__ = kind
    module.__dict__.pop(data_key(name), None)


def is_swapped(module: nn.Module, name: str) -> bool:
    """Whether a module runs the code of this recipe."""
    return any(found.recipe == name for found in _swaps(module))


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module has without any swap."""
    swaps = _swaps(module)
    return swaps[-1].base if swaps else type(module)


def _swaps(module: nn.Module) -> list[_Swap]:
    """The swaps of a module, the last first."""
    found: list[_Swap] = []
    kind: type[nn.Module] = type(module)
    while (made := vars(kind).get(_BASE)) is not None:
        found.append(made)
        kind = made.base
    return found


@cache
def _subclass(base: type[nn.Module], name: str, args: tuple[Hashable, ...]) -> type[nn.Module]:
    members = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    members |= _MEMBERS[name](base, *args)
    return type(base.__name__, (base,), {**members, "__reduce_ex__": _reduce, _BASE: _Swap(base, name, args)})


def _reduce(module: nn.Module, protocol: Any) -> Any:
    """For pickle and copy, which cannot find the made class by its name."""
    base, swaps = original_class(module), _swaps(module)
    getstate = getattr(base, "__getstate__", None)
    state = dict(getstate(module) if getstate is not None else module.__dict__)
    for left in {swap.recipe for swap in swaps} - _COPIED:
        state.pop(data_key(left), None)
    kept = tuple((s.recipe, s.args) for s in reversed(swaps) if s.recipe in _COPIED)
    if kept:
        return _empty_object, (base, kept), state
    return copyreg._reconstructor, (base, object, None), state  # type: ignore[attr-defined]


def _empty_object(kind: Any, swaps: tuple[tuple[str, tuple[Hashable, ...]], ...]) -> Any:
    for name, args in swaps:
        kind = _subclass(kind, name, args)
    return kind.__new__(kind)
