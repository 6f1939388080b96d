"""The parts of a model: what they get as input, and which of them can be traced alone."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from lightning_prune.channels.trace.export import export
from lightning_prune.errors import TraceError
from lightning_prune.support.modes import Arguments, attributes_kept, mode, split_input, without_hooks

_TRIED = 6  # of the largest parts
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


def largest_part(model: nn.Module, example_input: Any) -> str:
    """Says which part of a model can be traced, the one with the most parameters; "" if none is found."""
    found: dict[str, Arguments] = {}
    with contextlib.suppress(Exception):  # the user's code; that it fails was said
        found = inputs_of_parts(model, example_input)
    total = sum(p.numel() for p in model.parameters())
    sizes = {path: sum(p.numel() for p in model.get_submodule(path).parameters()) for path in found if path}
    sizes = {path: size for path, size in sizes.items() if size >= _SMALLEST * total > 0}
    for path in sorted(sizes, key=lambda p: -sizes[p])[:_TRIED]:
        with contextlib.suppress(TraceError):
            export(model.get_submodule(path), found[path])
            return f"Its part {path!r} can be traced ({sizes[path] / total:.0%} of the parameters): network={path!r}"
    return ""
