"""The fixture of all tests that hold for every method; see `RIVALS` for those that take fewer of them."""

from __future__ import annotations

import pytest

from tests.callbacks.methods import METHODS, RIVALS


@pytest.fixture(params=[name for name in METHODS if name not in RIVALS])
def method(request: pytest.FixtureRequest) -> str:
    """The name of a method of the one table."""
    return str(request.param)
