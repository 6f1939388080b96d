"""From a model to the ATen graph that everything else reads."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lightning_prune.errors import TraceError
from lightning_prune.support.modes import mode, split_input


def export(
    model: nn.Module, example_input: Any, *, training: bool = False, dynamic_shapes: Any = None
) -> ExportedProgram:
    """Exports a model to an ATen graph. The model's mode and hooks are as before afterwards.

    Raises:
        TraceError: with the first line of what went wrong.
    """
    args, kwargs = split_input(example_input)
    collecting = gc.isenabled()
    gc.disable()  # tracing makes many small objects and no garbage worth looking for
    try:
        with mode(model, training), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (*args, *kwargs.values())]
        lines = str(error).strip().splitlines() or [""]
        raise TraceError(
            f"{type(model).__name__} cannot be traced with an input of {shapes}: {type(error).__name__}: {lines[0]}. "
            "Expected a model that runs on this example input and that torch.export can export: check the input's "
            "shape, dtype and device by calling model(example_input) first"
        ) from error
    finally:
        if collecting:
            gc.enable()
