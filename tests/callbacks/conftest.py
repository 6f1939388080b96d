"""The fixture of all tests that hold for every method."""

from __future__ import annotations

import pytest

from tests.callbacks.methods import METHODS


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """The name of a method of the one table."""
    return str(request.param)
