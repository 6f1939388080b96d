"""The fixture of all tests that hold for every method; `RIVALS`, `FRESH` and their like are run through fewer."""

from __future__ import annotations

import pytest

from tests.callbacks.methods import FRESH, GATED, METHODS, RIVALS, SPARSE_MACS, STEPS


@pytest.fixture(params=[name for name in METHODS if name not in RIVALS | FRESH | STEPS | GATED | SPARSE_MACS])
def method(request: pytest.FixtureRequest) -> str:
    """The name of a method of the one table."""
    return str(request.param)
