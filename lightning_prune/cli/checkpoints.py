"""Reading what a run leaves behind: checkpoints, pruned files, and the folders that hold them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from lightning_prune.cli.mistakes import UserError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint, read without running code.

    Raises:
        UserError: it is not one.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0][:160]
        raise UserError(f"{path} is no checkpoint that can be read ({type(error).__name__}: {first}).") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is no Lightning checkpoint: it has no state_dict.")
    return checkpoint
