"""The bound on CPU time that the sweeps run under."""

from __future__ import annotations

import contextlib

import pytest

from tests.sweep.limit import OutOfTime, cpu_limit


def test_code_that_catches_every_exception_is_stopped_too() -> None:
    with pytest.raises(OutOfTime), cpu_limit(0.05):
        _go_on()


def _go_on() -> None:
    while True:
        with contextlib.suppress(Exception):
            sum(range(1000))
