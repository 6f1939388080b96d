"""Two gloo processes on the CPU, for the tests of distributed training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch


def run_in_two(module: str, folder: Path) -> None:
    """Run a test module as a script, ``python -m module folder``; its first fit with "ddp" starts the second process.

    One pair of processes runs all cases: most of the time goes into importing torch.
    """
    done = subprocess.run([sys.executable, "-m", module, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def leave_group() -> None:
    """End the process group, at the end of a script: gloo's threads may abort a process that exits with one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
