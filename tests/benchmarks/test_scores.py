"""The page of all scores: one run in small, and tables from made-up runs."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.benchmarks import scores, search
from tests.benchmarks.bench.pipelines import remembered


def arguments(methods: list[str], seeds: list[int]) -> argparse.Namespace:
    return argparse.Namespace(networks=["smoke"], methods=methods, macs=[0.5], seeds=seeds, subset=256)


def test_a_run_says_what_is_left_right_after_the_removal_and_at_the_end(tmp_path: Path) -> None:
    dense, key = scores.grid(arguments(["random"], [0]))
    assert dense["method"] == scores.DENSE
    found = remembered(tmp_path / "runs.jsonl", key, lambda: scores.train(key, "", tmp_path))
    assert found is not None
    assert found["macs"] == pytest.approx(0.5, rel=1e-2)
    assert 0 < found["removed"] < 100
    assert 0 < found["accuracy"] < 100
    assert found["removed"] != found["accuracy"]
    assert remembered(tmp_path / "runs.jsonl", key, None) == found


def test_differences_are_paired_and_losses_are_shown_as_losses() -> None:
    stamp = {"date": "today", "revision": "abc", "versions": "none", "macs": 0.5, "params": 0.4}
    found = {}
    for seed in (0, 1):
        found["smoke", scores.REFERENCE, 0.5, seed] = {"removed": 30.0 + seed, "accuracy": 80.0 + seed, **stamp}
        found["smoke", "l2", 0.5, seed] = {"removed": 31.0 + seed, "accuracy": 78.0 + seed, **stamp}
    found["smoke", "fpgm", 0.5, 1] = {"removed": 31.5, "accuracy": 84.0, **stamp}
    found["smoke", "taylor", 0.5, 7] = {"removed": 31.5, "accuracy": 70.0, **stamp}  # without a pair
    lines = scores.page(found, arguments([], [0, 1])).splitlines()
    assert "| l2 | 2 | +1.00 ± 0.00 | -2.00 ± 0.00 |" in lines
    rows = [line for line in lines if line.endswith("| 0.500 | 0.400 |")]
    assert rows == [
        "| fpgm | 1 | 31.50 | +0.50 | 84.00 | +3.00 | 0.500 | 0.400 |",
        f"| **{scores.REFERENCE}** | 2 | 30.50 |  | 80.50 |  | 0.500 | 0.400 |",
        "| l2 | 2 | 31.50 | +1.00 ± 0.00 | 78.50 | -2.00 ± 0.00 | 0.500 | 0.400 |",
        "| taylor | 1 | 31.50 | – | 70.00 | – | 0.500 | 0.400 |",
    ]


def test_a_share_that_a_method_cannot_meet_is_told(tmp_path: Path) -> None:
    stamp = {"date": "today", "revision": "abc", "versions": "none", "macs": 0.5, "params": 0.4}
    found = {
        ("smoke", scores.REFERENCE, 0.5, 0): {"removed": 30.0, "accuracy": 80.0, **stamp},
        ("smoke", "hrank", 0.5, 0): {"error": "0.749 stays", **stamp},
    }
    text = scores.page(found, arguments([], [0]))
    assert "- hrank: not met. 0.749 stays." in text
    assert "| hrank |" not in text
    _, key = scores.grid(arguments(["random"], [0]))
    assert set(scores.train({**key, "macs": 1e-6}, "", tmp_path)) == {"error"}


def test_a_search_is_compared_with_uniform_widths_and_with_the_agent() -> None:
    args = argparse.Namespace(network="smoke", macs=0.5, subset=256, dense=1, finetune=1, candidates=20)
    stamp = {"date": "today", "revision": "abc", "versions": "none", "seconds": 2.0}
    values = {("uniform", 1): 50.0, ("evolution", 2): 49.0, ("evolution", 20): 52.0, ("amc", 20): 51.0}
    found = {
        key: {seed: {**stamp, **dict.fromkeys(search.COLUMNS, value + seed)} for seed in (0, 1)}
        for key, value in values.items()
    }
    del found["amc", 20][1]
    lines = search.page(found, args).splitlines()
    assert "| evolution | 2 | 2 | 2 |" + 3 * " 49.50 (-1.00 ± 0.00) |" in lines
    assert "| uniform | 1 | 2 | 2 |" + 3 * " 50.50 |" in lines
    (tenth,) = (line for line in lines if line.startswith("- evolution with 2 candidates above AMC with 20: "))
    assert "-2.00 held out, -2.00 right after the removal, -2.00 after finetune" in tenth


def test_every_score_is_on_the_page() -> None:
    assert {"uniform L1", "MRTS", "Network Slimming", "SFP", "evolution", "AMC", *scores.score_names()} <= set(
        scores.methods()
    )
