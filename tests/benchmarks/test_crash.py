"""Killed trainings: ten of the cases of ``tests.benchmarks.crash``, torn files, and that it finds what it looks for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.crash import Case, run, table
from tests.benchmarks.crashing.deaths import KINDS, TWICE, deaths
from tests.benchmarks.crashing.lives import Outcome, checkpoint_of, difference, last_whole

# Each kind of point once, each family of methods several times.
TEN = [
    Case("ltp", "copy", 0), Case("ltp", "removal", 0), Case("ltp", TWICE, 0), Case("toy gates", "between batches", 0),
    Case("mrts", "start of the phase", 0), Case("mrts", "any moment", 0), Case("taylor", "removal", 0),
    Case("flop", "sparsify", 0), Case("flop", "write", 0), Case("anp-vs", "rename", 0),
]  # fmt: skip


def test_ten_killed_trainings_end_as_if_nothing_had_happened() -> None:
    found = list(run(TEN))
    assert [(*case, outcome.failure) for case, outcome in found if outcome.failure] == []
    assert {case.kind for case, _ in found} == {*KINDS, TWICE} - {"warm-up", "finetune"}
    assert sum(outcome.kills for _, outcome in found) == 11  # one of them twice
    assert found[0][1].torn == 1
    text = table(found)
    assert "10 trainings of 6 epochs" in text
    assert "| copy | 1 | 1 | 1 | 0 |" in text


def test_no_beginning_of_a_checkpoint_is_taken_for_a_whole_one(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": {"w": torch.randn(40, 40)}, "callbacks": {"c": {"stage": "soft"}}, "global_step": 3}, buffer
    )
    data, path = buffer.getvalue(), tmp_path / "torn.ckpt"
    for size in {*range(0, len(data), 97), *range(len(data) - 200, len(data))}:
        path.write_bytes(data[:size])
        assert checkpoint_of(path) is None, size
    (tmp_path / "whole.ckpt").write_bytes(data)
    assert last_whole(tmp_path) == (tmp_path / "whole.ckpt", "soft", 1)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"seconds": 2.0}, ""),
        ({"weights": {"w": torch.tensor([1.0, 2.0000002])}}, "another value of ['weights']['w']"),
        ({"callback": {"seen": 23}}, "another value of ['callback']['seen']"),
        ({"plan": "{}"}, "another value of ['plan']"),
        ({"optimizers": []}, "another structure"),
    ],
)
def test_the_judge_finds(changed: dict[str, Any], found: str) -> None:
    whole = {"seconds": 1.0, "weights": {"w": torch.tensor([1.0, 2.0])}, "callback": {"seen": 24}, "plan": None}
    assert difference(whole, whole | changed) == found


def test_points_are_the_same_each_time_and_a_failure_is_in_the_table() -> None:
    for kind in (*KINDS, TWICE):
        points = [*deaths("ltp", kind, 3)]
        assert points == [*deaths("ltp", kind, 3)]
        others = [(*deaths(method, kind, n),) for method in ("ltp", "mrts") for n in range(5)]
        assert len(set(others)) > 2
        assert len(points) == (2 if kind == TWICE else 1)
    text = table([(Case("ltp", "copy", 7), Outcome(1, ["soft"], 1, "another value of ['weights']['w']"))])
    assert "- ltp, copy 7: another value of ['weights']['w']" in text
