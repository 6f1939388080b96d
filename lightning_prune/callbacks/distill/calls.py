"""What a network is called on, what it gives, and what some of its layers give meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One call of a network.

    Attributes:
        args, kwargs: what it was called on.
        output: what it returned.
        features: {path of a layer: its outputs, in order}.
        trains: whether gradients were on.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    features: dict[str, list[Tensor]] = field(default_factory=dict)
    trains: bool = True


@contextmanager
def recording(network: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[list[Call]]:
    """Inside, every call of a network is added to the list. Nothing is left on it after."""
    calls: list[Call] = []
    now: dict[str, list[Tensor]] = {}

    def begin(*_: Any) -> None:
        now.clear()  # also of what a backward that runs layers again has left

    def note(path: str, output: Any) -> None:
        if torch.is_tensor(output):
            now.setdefault(path, []).append(output)

    def end(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(Call(args, kwargs, output, dict(now), torch.is_grad_enabled()))
        now.clear()

    handles = [network.register_forward_pre_hook(begin), network.register_forward_hook(end, with_kwargs=True)]
    for path, layer in layers.items():
        handles.append(layer.register_forward_hook(lambda _module, _args, output, path=path: note(path, output)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
