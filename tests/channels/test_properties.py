"""Random networks and random plans: what must hold of any of them (`grammar.check`)."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.channels.grammar import networks, plans
from tests.channels.grammar.check import Case, check
from tests.channels.grammar.found import FOUND
from tests.channels.grammar.steps import Pick

EXAMPLES, MOST = 300, 6
DEEP = 10
"""One case in so many is cut twice, which traces twice."""


class Drawn(Pick):
    """Choices of hypothesis, which makes a case that fails small."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw

    def __call__(self, options: Any) -> Any:
        """One of them."""
        return self._draw(st.sampled_from(list(options)))


@st.composite
def cases(draw: Any) -> Case:
    """A network and a plan."""
    pick = Drawn(draw)
    return Case(networks.generate(pick, MOST), plans.generate(pick))


@settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
    suppress_health_check=list(HealthCheck), print_blob=False,
)  # fmt: skip
@given(cases())
def test_whatever_the_network_and_the_plan(case: Case) -> None:
    with TemporaryDirectory() as folder:
        check(case, Path(folder), deep=case.plan["seed"] % DEEP == 0)


@pytest.mark.parametrize("text", FOUND)
def test_what_was_wrong_once(text: str, tmp_path: Path) -> None:
    check(Case(*json.loads(text)), tmp_path)
