"""The network inside a LightningModule."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def holders(module: nn.Module) -> Iterator[nn.Module]:
    """The module, then its one child that holds all parameters, that child's, and so on down."""
    while True:
        yield module
        children = [child for child in module.children() if any(True for _ in child.parameters())]
        direct = any(True for _ in module.parameters(recurse=False))
        if direct or len(children) != 1 or isinstance(children[0], (nn.ModuleList, nn.ModuleDict)):
            return
        module = children[0]


def find_network(module: nn.Module, name: str | None = None) -> nn.Module:
    """The network inside a LightningModule: the child that was named, or the innermost that holds all parameters.

    Raises:
        ValueError: there is no such child.
    """
    if name is None:
        return list(holders(module))[-1]
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        children = ", ".join(n for n, _ in module.named_children())
        raise ValueError(f"network={name!r} is not a module of {type(module).__name__}; it has {children}.") from error
