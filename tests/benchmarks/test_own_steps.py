"""The pages of the questions about ANP-VS, SANP and TAS, from made-up runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import own_steps


def test_a_page_shows_losses_as_losses() -> None:
    names = own_steps.QUESTIONS["widths"][1]
    found = {name: [{"accuracy": 90.0 + i, "MACs left": 0.35} for i in range(2)] for name in names}
    found["uniform"] = [{"accuracy": 91.0, "MACs left": 0.34}, {"accuracy": 93.0, "MACs left": 0.34}]
    text = own_steps.page("widths", found, [0, 1])
    assert "| widths and depths | 90.5 | 0.35 |" in text
    assert "| uniform | 92.0 (-1.5 ± 6.4) | 0.34 |" in text
    assert "| Taylor | 90.5 (+0 ± 0) | 0.35 |" in text


def test_what_was_trained_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def question(name: str, seed: int, seeds: list[int]) -> dict[str, float]:
        calls.append((name, seed))
        return {"accuracy": 1.0 + seed}

    monkeypatch.setattr(own_steps, "RESULTS", tmp_path / "runs.jsonl")
    monkeypatch.setitem(own_steps.QUESTIONS, "made", (question, ["a"], "", ""))
    for _ in range(2):
        assert [own_steps.remembered("made", "a", seed, [0, 1]) for seed in (0, 1)] == [
            {"accuracy": 1.0},
            {"accuracy": 2.0},
        ]
    assert calls == [("a", 0), ("a", 1)]
