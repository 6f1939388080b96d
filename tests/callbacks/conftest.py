"""The fixture of all tests that hold for every method; see `RIVALS`, `FRESH`, `STEPS` for those that take fewer."""

from __future__ import annotations

import pytest

from tests.callbacks.methods import FRESH, METHODS, RIVALS, STEPS


@pytest.fixture(params=[name for name in METHODS if name not in RIVALS | FRESH | STEPS])
def method(request: pytest.FixtureRequest) -> str:
    """The name of a method of the one table."""
    return str(request.param)
