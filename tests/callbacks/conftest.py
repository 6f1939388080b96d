"""The fixture of all tests that hold for every method; see `RIVALS` and `STEPS` for those that take fewer of them."""

from __future__ import annotations

import pytest

from tests.callbacks.methods import METHODS, RIVALS, STEPS


@pytest.fixture(params=[name for name in METHODS if name not in RIVALS | STEPS])
def method(request: pytest.FixtureRequest) -> str:
    """The name of a method of the one table."""
    return str(request.param)
