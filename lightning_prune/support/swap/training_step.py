"""Code around a LightningModule's ``training_step``, by a swap of its class: copies and pickles do not have it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_prune.support.swap.class_swap import data_key, recipe, restore, swap

Around = Callable[..., Any]
"""``around(module, step, *args, **kwargs)``: calls ``step(*args, **kwargs)``, and returns what takes its place."""

_RECIPE = "training_step"
_KEY = data_key(_RECIPE)


def wrap_training_step(module: nn.Module, around: Around) -> None:
    """Put code around it, outside of what is there already. `unwrap_training_step` takes it off."""
    unwrap_training_step(module, around)
    swap(module, _RECIPE, data=(*module.__dict__.get(_KEY, ()), around))


def unwrap_training_step(module: nn.Module, around: Around) -> None:
    """Take that code off; nothing happens where it is not."""
    left = tuple(other for other in module.__dict__.get(_KEY, ()) if other != around)
    restore(module, _RECIPE)
    if left:
        swap(module, _RECIPE, data=left)


@recipe(_RECIPE, copied=False)
def _wrapped(base: type[Any]) -> dict[str, Any]:
    # A property, which goes before an attribute of the instance: a compiled module has its step there.
    def get(self: Any) -> Callable[..., Any]:
        own = vars(self).get("training_step")
        step = own if own is not None else base.training_step.__get__(self, base)
        called = step
        for around in self.__dict__[_KEY]:
            called = functools.partial(around, self, called)

        @functools.wraps(step)  # Lightning reads from its signature whether it takes batch_idx
        def training_step(*args: Any, **kwargs: Any) -> Any:
            return called(*args, **kwargs)

        return training_step

    def put(self: Any, value: Any) -> None:
        vars(self)["training_step"] = value

    def delete(self: Any) -> None:
        del vars(self)["training_step"]

    return {"training_step": property(get, put, delete)}
