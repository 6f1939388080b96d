"""The table of unstructured methods: what stands in the README is of the runs that are kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks import accuracy
from tests.benchmarks.bench.runs import Run


def test_the_page_and_the_readmes_table_are_what_the_command_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme, page = accuracy.README.read_text(), accuracy.PAGE.read_text()
    for name, file in (("README", tmp_path / "README.md"), ("PAGE", tmp_path / "page.md")):
        monkeypatch.setattr(accuracy, name, file)
    accuracy.README.write_text(accuracy.placed(readme, ["an older table"]))
    monkeypatch.setattr(accuracy, "draw", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["accuracy", "--known", "--out", str(accuracy.PAGE)])
    accuracy.main()
    assert accuracy.README.read_text() == readme
    assert accuracy.PAGE.read_text() == page


def test_runs_that_need_the_re_estimate_are_named() -> None:
    results = {
        Run("a", "STR", 50, 0): {"accuracy": 0.72, "as_trained": 0.1},
        Run("a", "LTP", 50, 0): {"accuracy": 0.7, "as_trained": 0.69},
        Run("b", "LTP", 50, 0): {"accuracy": 0.7},
    }
    assert accuracy.as_trained(results).endswith(
        "1 of 2 runs end more than 3 points away (a, 50x, STR, seed 0: 10.00 for 72.00)."
    )
    del results[Run("a", "STR", 50, 0)]
    assert accuracy.as_trained(results).endswith("none of 1 runs end more than 3 points away.")


def test_the_dense_network_stands_beside_each_compression_of_its_own() -> None:
    runs = {
        Run("a", "dense", 1, 0): 0.8,
        Run("a", "LTP", 3, 0): 0.7,
        Run("a", "LTP", 50, 0): 0.6,
        Run("b", "LTP", 9, 0): 0.5,
    }
    results = {run: {"accuracy": value} for run, value in runs.items()}
    rows = accuracy.table(results)
    assert rows[0] == "| network, compression | seeds | LTP | dense |"
    assert rows[2:] == [
        "| a, 3x | 1 | **70.00** | 80.00 (-10.00) |",
        "| a, 50x | 1 | **60.00** | 80.00 (-20.00) |",
        "| b, 9x | 1 | **50.00** | – |",
    ]
    over_networks = [line for line in accuracy.summary(results) if line.startswith("| ")][1:]
    assert over_networks == ["| 3x | -10.00 (least -10.00) |", "| 50x | -20.00 (least -20.00) |", "| 9x | – |"]


def test_lines_go_between_the_marks_and_nowhere_else() -> None:
    text = f"above\n{accuracy.BEGIN}\nold\nolder\n{accuracy.END}\nbelow\n"
    assert accuracy.placed(text, ["new"]) == f"above\n{accuracy.BEGIN}\n\nnew\n\n{accuracy.END}\nbelow\n"


def test_a_picture_has_a_panel_a_network(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [Run(n, m, x, 0) for n in ("a", "b") for m in ("LTP", "magnitude") for x in (3, 50)]
    accuracy.draw({run: {"accuracy": 0.5} for run in runs}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
