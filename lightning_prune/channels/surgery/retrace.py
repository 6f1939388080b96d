"""Exports the methods of a dense model that a rewritten graph has to stand for, each trunk once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from lightning_prune.channels.trace.export import export
from lightning_prune.channels.trace.program import Program
from lightning_prune.errors import TraceError
from lightning_prune.support.modes import Arguments, mode, split_input

FEATURES = "forward_features"


class _Source:
    """What a `_Method` presents, and the structures of what came back. Export resets lists that a module holds."""

    def __init__(self, model: nn.Module, method: str) -> None:
        self.model, self.method = model, method
        self.specs: list[Any] = []


class _Method(nn.Module):
    """Presents a method of a model as `forward`, with the model's own tensor names.

    If `forward` calls `forward_features` once, on its own arguments, then it also returns what came back. Exporting
    is what takes time here, and both methods are mostly the same trunk.
    """

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.__dict__.update({k: v for k, v in model.__dict__.items() if k not in ("forward", FEATURES)})
        self.__dict__["_source"] = _Source(model, method)

    @property
    def source(self) -> _Source:
        return self.__dict__["_source"]  # type: ignore[no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        source = self.source
        model, method = source.model, source.method
        watched = method == "forward" and hasattr(type(model), FEATURES) and FEATURES not in model.__dict__
        calls: list[tuple[Any, Any]] = []

        def record(*a: Any, **k: Any) -> Any:
            out = getattr(type(model), FEATURES)(model, *a, **k)
            # The head may change the features in place.
            calls.append(((a, k), out.clone() if isinstance(out, Tensor) else None))
            return out

        if watched:
            model.__dict__[FEATURES] = record
        try:
            out = getattr(model, method)(*args, **kwargs)
        finally:
            if watched:
                del model.__dict__[FEATURES]
        source.specs = [pytree.tree_structure(out)]
        if len(calls) != 1 or calls[0][1] is None or not _same(calls[0][0], (args, kwargs)):
            return out
        source.specs.append(pytree.tree_structure(calls[0][1]))
        return out, calls[0][1]


def _same(first: Any, second: Any) -> bool:
    """Whether two calls have the very same arguments."""
    (a, specs), (b, others) = pytree.tree_flatten(first), pytree.tree_flatten(second)
    return specs == others and all(x is y for x, y in zip(a, b, strict=True))


@dataclass(frozen=True)
class Trace:
    """An exported program that stands for one or two methods.

    Attributes:
        methods: {method: how its flat outputs are put together}. Of two, the second is the program's last output.
    """

    program: Program
    methods: dict[str, Any]


def traces(model: nn.Module, example_input: Any, training: bool, noise: bool = True) -> list[Trace]:
    """Exports `forward`, and `forward_features` where the model has it; noise: as for `mode`."""
    method = _Method(model, "forward")
    program = dynamic_export(method, example_input, training, noise)
    found = [Trace(program, dict(zip(("forward", FEATURES), method.source.specs, strict=False)))]
    if hasattr(type(model), FEATURES) and FEATURES not in found[0].methods:
        method = _Method(model, FEATURES)
        program = dynamic_export(method, example_input, training, noise)
        found.append(Trace(program, {FEATURES: method.source.specs[0]}))
    return found


def dynamic_export(method: _Method, example_input: Any, training: bool, noise: bool = True) -> Program:
    """Exports with a free batch size if the model allows it; the other sizes are those of the example."""
    args, kwargs = example = at_least_two(example_input)
    batch = Dim("batch", min=1, max=1 << 16)

    def free(value: Any) -> Any:
        return pytree.tree_map(lambda v: {0: batch} if isinstance(v, Tensor) and v.ndim else None, value)

    dims = {**({"args": free(args)} if args else {}), **free(kwargs)}
    with mode(method.source.model, training, noise=noise):
        try:
            found = export(method, example, training=training, noise=noise, dynamic_shapes=dims)
        except TraceError:
            found = export(method, example, training=training, noise=noise)
        return Program.of_export(found)


def at_least_two(example_input: Any) -> Arguments:
    """An input of two samples where it has one: a batch of one would be baked into a graph, and has no variance."""
    found: Arguments = pytree.tree_map(
        lambda v: torch.cat([v, v]) if isinstance(v, Tensor) and v.ndim and v.shape[0] == 1 else v,
        split_input(example_input),
    )
    return found
