"""Pipelines of the bench: what is remembered, how methods are named, and what the pages say; nothing is trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from lightning_prune import DistillationCallback, LTPCallback, MRTSCallback
from tests.benchmarks import from_scratch, rethinking
from tests.benchmarks.bench.methods import callbacks, names
from tests.benchmarks.bench.pipelines import remembered


def test_a_pipeline_is_run_once(tmp_path: Path) -> None:
    file, runs = tmp_path / "pipelines.jsonl", []

    def work() -> dict[str, Any]:
        runs.append(1)
        return {"accuracy": 0.5}

    first = remembered(file, {"method": "a", "seed": 0}, work)
    assert first is not None
    assert remembered(file, {"method": "a", "seed": 0}, work) == first
    assert remembered(file, {"method": "a", "seed": 1}, None) is None
    remembered(file, {"method": "a", "seed": 1}, work)
    assert len(runs) == 2
    assert len(file.read_text().splitlines()) == 2


def test_a_taught_method_has_a_teacher_beside_it() -> None:
    assert {"LTP", "LTP + KD", "MRTS", "MRTS + KD", "dense", "dense + KD"} <= set(names())
    assert callbacks("dense", 20, 8) == []
    [plain] = callbacks("LTP", 20, 8)
    assert isinstance(plain, LTPCallback)
    assert plain.target_sparsity == 0.95
    teacher, pruning = callbacks("MRTS + KD", 4, 8)
    assert isinstance(teacher, DistillationCallback)
    assert isinstance(pruning, MRTSCallback)
    assert pruning.budget == ("macs", 0.25)


def test_differences_are_paired_by_seed() -> None:
    def training(arm: str, value: float) -> dict[str, Any]:
        return {"arm": arm, "value": value, "epochs": 4, "cost": 0.5}

    found = [
        {"dense": 80.0 + shift, "trainings": [
            training("finetuned", 0.70 + shift / 100), training("Scratch-E", 0.72 + shift / 100),
            training("Scratch-B", 0.69 + shift / 100),
        ]}
        for shift in (0, 2)
    ]  # fmt: skip
    expected = "| a | 2 | 81.00 | 71.00 | 73.00 (+2.00 ± 0.00) | 70.00 (-1.00 ± 0.00) |"
    assert rethinking.row("a", found) == expected
    lines = {seed: {"accuracy": 80.0 + seed, "cost": 15.0, "macs": 0.5, "dense": 10, "compact": 10} for seed in (0, 1)}
    better = {1: {"accuracy": 82.5, "cost": 7.0, "macs": 0.5, "dense": 2, "compact": 10}}
    assert (
        from_scratch.row(from_scratch.REFERENCE, lines, lines)
        == "| Network Slimming | 2 | 10 + 10 | 15.0 | 0.500 | 80.50 |"
    )
    assert from_scratch.row("b", better, lines) == "| b | 1 | 2 + 10 | 7.0 | 0.500 | 82.50 (+1.50) |"


def test_trainings_of_equal_cost_cost_the_same() -> None:
    args = argparse.Namespace(epochs=10, macs=0.5, search=2, gate_lr=0.05)
    costs = {m: dense + args.macs * compact for m, (_, dense, compact) in from_scratch.plans(args).items()}
    assert costs["the same, at equal cost"] == pytest.approx(costs[from_scratch.REFERENCE], abs=args.macs)
    assert costs["Pruning from Scratch"] == costs[from_scratch.REFERENCE] - (10 - 2)
