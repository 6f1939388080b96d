"""The comparison of FLOP on a tiny model: every method meets the same share, and runs are trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.flop import METHODS, grid, known, page, run_all


def test_all_methods_leave_the_same_share_and_are_trained_once(tmp_path: Path) -> None:
    file = tmp_path / "flop.jsonl"
    results = run_all(grid(["smoke"], [0]), file)
    assert {run.method for run in results} == set(METHODS)
    for run, result in results.items():
        assert result["left"] == pytest.approx(run.share, abs=0.02)
    assert run_all(grid(["smoke"], [0]), file) == results == known(file)
    lines = page(results)
    assert lines[-1].startswith("| smoke, 0.7 (bits per character, lower is better) | 1 | **")
    own, other = results[grid(["smoke"], [0])[0]]["value"], results[grid(["smoke"], [0])[1]]["value"]
    assert f"{other:.3f} ({other - own:+.3f}" in lines[-1]  # in bits, less is better
