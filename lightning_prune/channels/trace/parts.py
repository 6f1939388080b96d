"""The parts of a model: what they get as input, and which of them can be traced alone."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from lightning_prune.channels.trace.record import trace_program
from lightning_prune.errors import TraceError
from lightning_prune.support.modes import Arguments, attributes_kept, mode, split_input, without_hooks

_TRIED = 6  # of the largest parts
_NAMED = 2
_SMALLEST = 0.1  # share of the parameters that a part must have to be worth a word


def inputs_of_parts(model: nn.Module, example_input: Any) -> dict[str, Arguments]:
    """{path: what its first call gets} of all modules below `model`, in a run in eval mode; raises what it raises."""
    found: dict[str, Arguments] = {}
    handles = []
    with attributes_kept(model), mode(model, False), without_hooks(model), torch.no_grad():
        for path, module in model.named_modules():

            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                found.setdefault(path, Arguments(args, kwargs))

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
        try:
            args, kwargs = split_input(example_input)
            model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
    return found


def largest_parts(model: nn.Module, example_input: Any) -> str:
    """Says which parts of a model can be traced, the one or two with the most parameters; "" if none is found."""
    inputs: dict[str, Arguments] = {}
    with contextlib.suppress(Exception):  # the user's code; that it fails was said
        inputs = inputs_of_parts(model, example_input)
    total = max(1, sum(p.numel() for p in model.parameters()))
    shares = {path: sum(p.numel() for p in model.get_submodule(path).parameters()) / total for path in inputs if path}
    found: list[str] = []
    for path in sorted((p for p, share in shares.items() if share >= _SMALLEST), key=lambda p: -shares[p])[:_TRIED]:
        if len(found) < _NAMED and not any(path.startswith(f"{other}.") for other in found):
            with contextlib.suppress(TraceError):
                trace_program(model.get_submodule(path), inputs[path])
                found.append(path)
    if not found:
        return ""
    named = ", ".join(f"network={path!r} ({shares[path]:.0%} of the parameters)" for path in found)
    return f"A part of it can be traced, and pruned alone: {named}"
