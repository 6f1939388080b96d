"""Whose fault an exception is: the network's, the machine's, or our own. Only the first is told as the network's."""

from __future__ import annotations

from pathlib import Path
from traceback import walk_tb

import torch

_PACKAGE = Path(__file__).parents[1]
_TORCH = Path(torch.__file__).parent
_RUNS_A_MODEL = (_TORCH / "nn" / "modules" / "module.py", _TORCH / "fx")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the host or on a device."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in str(error)


def is_networks(error: BaseException) -> bool:
    """Whether code that a network runs raised it: below our last call, a module was run. Memory is nobody's fault."""
    if is_out_of_memory(error):
        return False
    files = [Path(frame.f_code.co_filename) for frame, _ in walk_tb(error.__traceback__)]
    ours = [i for i, f in enumerate(files) if f.is_relative_to(_PACKAGE) and not f.is_relative_to(_PACKAGE / "zoo")]
    below = files[ours[-1] + 1 :] if ours else files
    return any(f.is_relative_to(place) for f in below for place in _RUNS_A_MODEL)
