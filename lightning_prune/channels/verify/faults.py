"""Whose fault an error in a check is: the model's, or ours and the machine's."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from lightning_prune.errors import ChannelError

_PACKAGE = Path(__file__).parents[2]
_MODELS = _PACKAGE / "zoo"  # networks: what fails there is the model's own code
_MEMORY = (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))


def reraise_ours(error: Exception) -> None:
    """Raises an error again that says nothing about the model: memory ran out, or the last call was this package's.

    What torch itself raises (RuntimeError) is about shapes or dtypes, wherever it was called.
    """
    if isinstance(error, _MEMORY) or "DefaultCPUAllocator" in str(error):
        raise error
    if isinstance(error, (RuntimeError, ChannelError)):
        return
    frames = traceback.extract_tb(error.__traceback__)
    last = Path(frames[-1].filename) if frames else Path()
    if last.is_relative_to(_PACKAGE) and not last.is_relative_to(_MODELS):
        raise error


def explain(error: BaseException) -> str:
    """The kind of an error and its first line, and those of its cause."""
    first = (str(error).strip().splitlines() or [""])[0]
    cause = f" (caused by {explain(error.__cause__)})" if error.__cause__ is not None else ""
    return f"{type(error).__name__}: {first}{cause}"
