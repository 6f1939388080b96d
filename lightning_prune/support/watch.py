"""Looking at what flows through modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

Side = Literal["output", "input"]


@contextmanager
def watching(
    places: Mapping[str, tuple[nn.Module, Side]], note: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """Inside, ``note(name, tensor)`` is called with what enters or leaves some modules, once a call.

    Args:
        places: {name: (module, side of it)}; the input is the first positional argument.
        note: may return a tensor that takes the place of what it was given.
    """

    def before(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            instead = note(name, args[0]) if args else None
            return None if instead is None else (instead, *args[1:])

        return hook

    def after(name: str) -> Callable[..., Any]:
        return lambda _module, _args, output: note(name, output)

    handles = [
        module.register_forward_pre_hook(before(name)) if side == "input" else module.register_forward_hook(after(name))
        for name, (module, side) in places.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
