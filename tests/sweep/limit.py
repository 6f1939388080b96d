"""A bound on the CPU time that a piece of code takes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(BaseException):
    """The code took its CPU seconds; no `except Exception` inside it holds this up."""


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in the code inside once this process took that many CPU seconds in it; main thread alone."""
    before = signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.5)  # again and again, as a bare except may catch it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _late(*_: Any) -> None:
    raise OutOfTime
