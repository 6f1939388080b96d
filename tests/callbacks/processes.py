"""Processes on one machine that need no interpreter of their own: all are forked from one that has imported everything.

Most of the time of a small fit in a fresh process goes into importing torch. The first process starts the server, the
others take a hundredth of a second. What one writes to stdout and stderr goes into a file, and into the error if it
fails. Functions and arguments must be importable and picklable.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import torch

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.callbacks.methods"])


class Child(NamedTuple):
    """A process that runs, and the file of what it writes."""

    process: ForkServerProcess
    log: Path

    def wait(self, seconds: float) -> int:
        """The exit code, negative for a signal.

        Raises:
            AssertionError: the process has not ended after so many seconds; it is killed.
        """
        self.process.join(max(0.0, seconds))
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        told = self.log.read_text()
        self.log.unlink()
        assert code is not None, f"not at its end after {seconds:.0f} s:\n{told[-3000:]}"
        if code > 0:
            print(told[-3000:])  # pytest shows it where a test fails
        return code


def start(function: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None) -> Child:
    """Begin to run a function in a process of its own, on one thread."""
    with NamedTemporaryFile(suffix=".log", delete=False) as log:
        pass
    process = _FORKS.Process(target=_run, args=(function, arguments, environment or {}, log.name))
    process.start()
    return Child(process, Path(log.name))


def _run(function: Callable[..., Any], arguments: Any, environment: dict[str, str], log: str) -> None:
    with open(log, "wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        function(*arguments)
    finally:
        leave_group()


def start_ranks(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Child]:
    """Begin to run a function on so many gloo ranks: a fit with ``strategy="ddp"`` finds the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
    return [start(function, *arguments, environment=group | {"LOCAL_RANK": str(rank)}) for rank in range(ranks)]


def run_ranks(ranks: int, function: Callable[..., Any], *arguments: Any, seconds: float = 1200) -> list[int]:
    """The exit codes of all ranks.

    Raises:
        AssertionError: one has not ended after so many seconds; all are killed.
    """
    end = time.monotonic() + seconds
    children = start_ranks(ranks, function, *arguments)
    try:
        return [child.wait(end - time.monotonic()) for child in children]
    finally:
        for child in children:
            child.process.kill()


def this_rank() -> int:
    """The rank of this process, before a group is there too."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def leave_group() -> None:
    """End the process group, at the end of a script: gloo's threads may abort a process that exits with one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
