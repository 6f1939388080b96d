"""Whose fault an exception is: the network's, the machine's, or our own. Only the first is told as the network's."""

from __future__ import annotations

from pathlib import Path
from traceback import walk_tb

import torch

from lightning_prune.errors import ChannelError

_PACKAGE = Path(__file__).parents[1]
_NETWORKS = _PACKAGE / "zoo"  # what fails there is a network's own code
_TORCH = Path(torch.__file__).parent
_RUNS_A_MODULE = (_TORCH / "nn" / "modules" / "module.py", _TORCH / "fx")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on a device."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in str(error)


def is_networks(error: BaseException) -> bool:
    """Whether code that a network runs raised it: a module was called below our last call."""
    if is_out_of_memory(error):
        return False
    files = _files(error)
    ours = [i for i, file in enumerate(files) if _is_ours(file)]
    below = files[ours[-1] + 1 :] if ours else files
    return any(file.is_relative_to(place) for file in below for place in _RUNS_A_MODULE)


def reraise_ours(error: Exception) -> None:
    """Raises an error again that says nothing about the network: memory ran out, or the last call was this package's.

    For checks, which read a network's tensors and stand in for its layers: what torch itself raises (RuntimeError) is
    about shapes or dtypes there, wherever it was called.
    """
    if is_out_of_memory(error):
        raise error
    files = _files(error)
    if not isinstance(error, (RuntimeError, ChannelError)) and files and _is_ours(files[-1]):
        raise error


def explain(error: BaseException) -> str:
    """The kind of an error and its first line, and those of its cause."""
    first = (str(error).strip().splitlines() or [""])[0]
    cause = f" (caused by {explain(error.__cause__)})" if error.__cause__ is not None else ""
    return f"{type(error).__name__}: {first}{cause}"


def _files(error: BaseException) -> list[Path]:
    return [Path(frame.f_code.co_filename) for frame, _ in walk_tb(error.__traceback__)]


def _is_ours(file: Path) -> bool:
    return file.is_relative_to(_PACKAGE) and not file.is_relative_to(_NETWORKS)
