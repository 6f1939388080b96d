"""A model as `torch.export` sees it: for graphs that shall run, and where the recorder does not do."""

from __future__ import annotations

import contextlib
import gc
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lightning_prune.errors import TraceError
from lightning_prune.support.modes import Arguments, mode, split_input, without_hooks

_LONGEST = 300  # characters of PyTorch's own message that are shown


def export(
    model: nn.Module, example_input: Any, *, training: bool = False, noise: bool = True, statistics: bool = True,
    dynamic_shapes: Any = None,
) -> ExportedProgram:  # fmt: skip
    """Exports a model to an ATen graph. The model's mode and hooks are as before afterwards.

    ``noise`` and ``statistics`` are as for `mode`.

    Raises:
        TraceError: with the first line of what went wrong.
    """
    args, kwargs = split_input(example_input)
    collecting = gc.isenabled()
    gc.disable()  # tracing makes many small objects and no garbage worth looking for
    try:
        # PyTorch prints a graph that it could not finish, thousands of lines, to stderr.
        with (
            mode(model, training, noise=noise, statistics=statistics), without_hooks(model), torch.no_grad(),
            warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), _without_stack_traces(),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            return torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        given = [_shape(v) for v in args] + [f"{name}={_shape(v)}" for name, v in kwargs.items()]
        line = (str(error).strip().splitlines() or [""])[0]
        line = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
        raise TraceError(
            f"{type(model).__name__} cannot be traced with an input of ({', '.join(given)}): "
            f"{type(error).__name__}: {line}. Expected a model that runs on this example input and that torch.export "
            "can export: check the input's shape, dtype and device by calling model(example_input) first"
            f"{_hint(example_input)}"
        ) from error
    finally:
        if collecting:
            gc.enable()


@contextlib.contextmanager
def _without_stack_traces() -> Iterator[None]:
    """No call is traced back to a line of the user's code, which nothing here reads; where PyTorch lets one choose."""
    config: Any = getattr(torch.fx, "config", None)
    before = getattr(config, "do_not_emit_stack_traces", None)
    if before is None:
        yield
        return
    try:
        config.do_not_emit_stack_traces = True
        yield
    finally:
        config.do_not_emit_stack_traces = before


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _hint(example_input: Any) -> str:
    """How an input of this kind is taken, where it may be taken in another way than was meant."""
    if isinstance(example_input, Mapping):
        return (
            ". A dict holds keyword arguments; if the model takes the dict itself, wrap it in a tuple: "
            "example_input=({...},)"
        )
    if isinstance(example_input, list):
        return ". A list is one argument; give several in a tuple"
    if isinstance(example_input, tuple) and not isinstance(example_input, Arguments):
        return ". A tuple holds positional arguments; keyword ones go into example_kwargs"
    return ""
