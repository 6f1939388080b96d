"""Part of the table of behaviours: each way to train with a method that zeroes weights and one that cuts channels.

The methods rotate, so that each comes up. `python -m tests.benchmarks.behaviours` runs all cells.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.callbacks.methods import METHODS
from tests.callbacks.situations import SITUATIONS, rotating
from tests.callbacks.situations.cell import Situation, judge


@pytest.mark.parametrize(("situation", "method"), rotating())
def test_a_method_in_a_way_to_train(situation: str, method: str, tmp_path: Path) -> None:
    judge(SITUATIONS[situation], method, tmp_path)


def test_each_method_comes_up() -> None:
    assert {method for _, method in rotating()} == {*METHODS}


def test_the_judge_can_fail(tmp_path: Path) -> None:
    """A refusal that does not come, one in other words, and a module that is not left plain."""
    with pytest.raises(AssertionError, match="nothing was refused"):
        judge(Situation(refused={"all": "no"}), "oneshot", tmp_path)
    late = Situation(options={"all": {"warmup": 9}}, refused={"all": "something else"})
    with pytest.raises(ValueError, match="take"):
        judge(late, "oneshot", tmp_path)
    untrained = Situation(trainer=lambda: {"max_epochs": 3})
    with pytest.raises(AssertionError, match="no batch was trained after the removal"):
        judge(untrained, "oneshot", tmp_path)
