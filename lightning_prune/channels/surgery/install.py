"""Makes a model run from rewritten graphs, and its own code again: a swap of the object's class.

Copies and pickles run from the graphs too.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_prune.channels.surgery.rewrite import Programs
from lightning_prune.support.class_swap import data_key, is_swapped, recipe, restore, swap

_RECIPE = "programs"
_PROGRAMS = data_key(_RECIPE)


@recipe(_RECIPE, copied=True)
def _rewritten(base: type[nn.Module]) -> dict[str, Any]:
    members: dict[str, Any] = {
        "forward": _runner("forward"),
        "__doc__": f"{base.__name__}, run from a rewritten graph.",
    }
    if hasattr(base, "forward_features"):
        members["forward_features"] = _runner("forward_features")
    return members


def _runner(method: str) -> Any:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        programs: Programs = self.__dict__[_PROGRAMS]
        return programs.codes[method, self.training](self, args, kwargs)

    return run


def install(model: nn.Module, programs: Programs) -> None:
    """Makes a (sliced) model run from rewritten graphs. The object and its tensors stay."""
    swap(model, _RECIPE, data=programs)


def uninstall(model: nn.Module) -> None:
    """Makes a model run its own code again. Nothing happens to one that does."""
    restore(model, _RECIPE)


def is_rewritten(model: nn.Module) -> bool:
    """Whether a model, or a part of it, runs from rewritten graphs."""
    return any(is_swapped(module, _RECIPE) for module in model.modules())
