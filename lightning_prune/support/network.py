"""The network inside a LightningModule, and what is of Lightning, in either of its packages."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from typing import Any, TypeGuard, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


def is_a(thing: object, kind: type[T]) -> TypeGuard[T]:
    """As isinstance, for a class of Lightning's or its twin in the standalone package ``pytorch_lightning``."""
    twin = kind.__module__.replace("lightning.pytorch", "pytorch_lightning"), kind.__name__
    return isinstance(thing, kind) or any((base.__module__, base.__name__) == twin for base in type(thing).__mro__)


def reachable(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(address, module) of a module, of all below it, and of those that their public attributes hold unregistered.

    Those may be in lists, tuples and dicts, or attributes of a plain object. An address is a path as ``named_modules``
    has it, or one like ``copies[0].module``. Each module comes once, at its path if it has one.
    """
    seen: set[int] = set()
    roots = deque([("", module)])
    while roots:
        start, root = roots.popleft()
        hidden: list[tuple[str, Any]] = []
        for path, part in root.named_modules():
            if id(part) not in seen:
                seen.add(id(part))
                address = ".".join(filter(None, (start, path)))
                yield address, part
                hidden += [(_join(address, name), value) for name, value in vars(part).items() if name[0] != "_"]
        for address, value in hidden:
            roots.extend(_modules_in(address, value))


def held_by(address: str, holder: object) -> Iterator[tuple[str, nn.Module]]:
    """(address, module) of all modules that the public attributes of an object hold, see `reachable`."""
    for name, value in vars(holder).items():
        for place, root in _modules_in(_join(address, name), value) if name[0] != "_" else ():
            yield from ((".".join(filter(None, (place, path))), part) for path, part in reachable(root))


def _modules_in(address: str, value: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield address, value
    elif isinstance(value, (list, tuple)):
        for i, each in enumerate(value):
            yield from _modules_in(f"{address}[{i}]", each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _modules_in(f"{address}[{key!r}]", each)
    elif not isinstance(value, (Tensor, type)) and hasattr(value, "__dict__"):
        for name, each in vars(value).items():
            if isinstance(each, nn.Module):
                yield _join(address, name), each


def _join(address: str, name: str) -> str:
    return f"{address}.{name}" if address else name


def holders(module: nn.Module, aside: Collection[Tensor] = ()) -> Iterator[nn.Module]:
    """The module, then its one child that holds all parameters, that child's, and so on down.

    Parameters that are set ``aside`` do not count.
    """
    left_out = {id(p) for p in aside}
    while True:
        yield module
        children = [child for child in module.children() if any(id(p) not in left_out for p in child.parameters())]
        direct = any(True for _ in module.parameters(recurse=False))
        if direct or len(children) != 1 or isinstance(children[0], (nn.ModuleList, nn.ModuleDict)):
            return
        module = children[0]


def find_network(module: nn.Module, name: str | None = None, aside: Collection[Tensor] = ()) -> nn.Module:
    """The network inside a LightningModule: the child that was named, or the innermost that holds all parameters.

    Parameters that are set ``aside`` (of copies of the network) do not count.

    Raises:
        ValueError: there is no such child.
    """
    if name is None:
        return list(holders(module, aside))[-1]
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        children = ", ".join(n for n, _ in module.named_children())
        raise ValueError(f"network={name!r} is not a module of {type(module).__name__}; it has {children}.") from error
