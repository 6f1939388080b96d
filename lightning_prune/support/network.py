"""Finding the network inside the module that a user trains or saves."""

from __future__ import annotations

from torch import nn


def find_network(module: nn.Module, name: str | None = None) -> nn.Module:
    """The network inside a LightningModule: the child that was named, or the innermost that holds all parameters.

    Raises:
        ValueError: there is no such child.
    """
    if name is not None:
        try:
            return module.get_submodule(name)
        except AttributeError as error:
            children = ", ".join(n for n, _ in module.named_children())
            raise ValueError(
                f"network={name!r} is not a module of {type(module).__name__}; it has {children}."
            ) from error
    node = module
    while not any(True for _ in node.parameters(recurse=False)):
        holders = [child for child in node.children() if any(True for _ in child.parameters())]
        if len(holders) != 1 or isinstance(holders[0], (nn.ModuleList, nn.ModuleDict)):
            break
        node = holders[0]
    return node
