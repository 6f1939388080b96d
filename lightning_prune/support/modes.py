"""How a model is called while it is looked at: its mode, and its arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


def split_input(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns (positional, keyword) arguments for the model."""
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (tuple(example_input) if isinstance(example_input, (tuple, list)) else (example_input,)), {}


@contextlib.contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Puts all modules in train or eval mode, and back each to its own mode after."""
    before = [(m, m.training) for m in model.modules()]
    try:
        for m, _ in before:
            m.training = training
        yield
    finally:
        for m, was in before:
            m.training = was
