"""Makes a model run from rewritten graphs, and its own code again: a swap of the object's class.

Copies and pickles run from the graphs too.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_prune.channels.surgery.rewrite import Programs

_CLASSES: dict[type, type] = {}
_BASE = "_lightning_prune_eager_class"
PROGRAMS = "_compact_programs"


def eager_class(kind: type) -> type:
    """The class that a model had before its graphs were rewritten."""
    base: type = vars(kind).get(_BASE, kind)
    return base


def graph_class(kind: type) -> type:
    """A subclass of a model's class whose `forward` runs the graphs."""
    kind = eager_class(kind)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        programs: Programs = self.__dict__[PROGRAMS]
        return programs.codes["forward", self.training](self, args, kwargs)

    def forward_features(self: Any, *args: Any, **kwargs: Any) -> Any:
        programs: Programs = self.__dict__[PROGRAMS]
        return programs.codes["forward_features", self.training](self, args, kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        getstate = getattr(kind, "__getstate__", None)
        return _bare, (kind,), dict(getstate(self) if getstate is not None else self.__dict__)

    if kind not in _CLASSES:
        members: dict[str, Any] = {"forward": forward, "__doc__": f"{kind.__name__}, run from a rewritten graph."}
        members |= {_BASE: kind, "__reduce_ex__": reduce, "__module__": kind.__module__}
        if hasattr(kind, "forward_features"):
            members["forward_features"] = forward_features
        _CLASSES[kind] = type(kind.__name__, (kind,), members)
    return _CLASSES[kind]


def _bare(kind: type) -> Any:
    """An empty object of the graph class, for pickle and copy, which cannot find that class by its name."""
    made: Any = graph_class(kind)
    return made.__new__(made)


def install(model: nn.Module, programs: Programs) -> None:
    """Makes a (sliced) model run from rewritten graphs. The object and its tensors stay."""
    model.__dict__[PROGRAMS] = programs
    model.__class__ = graph_class(type(model))


def uninstall(model: nn.Module) -> None:
    """Makes a model run its own code again. Nothing happens to one that does."""
    if model.__dict__.pop(PROGRAMS, None) is not None:
        model.__class__ = eager_class(type(model))
