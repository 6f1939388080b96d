"""The experiment bench on a small network: what it remembers, what it pairs, and that a start's function stays."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_prune import TimmClassifier
from tests.benchmarks.bench.goals import goals
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.runs import Run, known, run_all, unlike_scales_
from tests.benchmarks.bench.table import compare, interval, overall, signed


def test_a_run_is_trained_once_and_gives_the_same_again(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    runs = [Run("smoke", method, 5, 0, 400, 1, 2, 1) for method in ("LTP", "magnitude")]
    first = run_all(runs, file, "", jobs=1)
    assert set(known(file)) == set(runs)
    assert all(v["compression"] == pytest.approx(5, rel=1e-2) and v["accuracy"] > 0.1 for v in first.values())
    lines = file.read_text().splitlines()
    assert run_all(runs, file, "", jobs=1) == first
    assert file.read_text().splitlines() == lines  # nothing was trained again
    file.write_text(lines[0] + "\n")
    again = run_all(runs, file, "", jobs=1)
    assert [v["accuracy"] for v in again.values()] == [v["accuracy"] for v in first.values()]
    assert json.loads(file.read_text().splitlines()[0]) == json.loads(lines[0])


def test_no_jobs_train_nothing(tmp_path: Path) -> None:
    assert run_all([Run("smoke", "LTP", 5, 0)], tmp_path / "none.jsonl", "", jobs=0) == {}


def test_a_training_that_diverges_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "wild", replace(NETWORKS["smoke"], prune_lr=1e20))
    run = Run("wild", "magnitude", 5, 0, 400, 1, 2, 1)
    [result] = run_all([run], tmp_path / "runs.jsonl", "", jobs=1).values()
    assert result["accuracy"] < 0.2  # ten classes
    assert run in known(tmp_path / "runs.jsonl")


def test_factors_on_layers_leave_the_function() -> None:
    model = TimmClassifier("resnet20_cifar", model_kwargs={"width": 4}).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # variances as a trained network has them, far above ε
            torch.nn.init.uniform_(module.running_var, 1, 2)
    images = torch.randn(4, 1, 8, 8)
    before, stem = model(images), model.model.get_submodule("conv1").weight.detach().clone()
    unlike_scales_(model, 0.5, seed=0)
    assert not torch.allclose(stem, model.model.get_submodule("conv1").weight)
    torch.testing.assert_close(model(images), before, rtol=1e-3, atol=1e-3)


def test_intervals_are_of_paired_differences() -> None:
    assert interval([1.0]) == (1.0, math.inf)
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 * statistics.stdev([1, 2, 3]) / math.sqrt(3)))
    accuracies = {("LTP", 0): 0.85, ("LTP", 1): 0.80, ("other", 0): 0.84, ("other", 1): 0.79}
    results = {Run("smoke", m, 5, s): {"accuracy": a} for (m, s), a in accuracies.items()}
    table = compare(results, lambda run: run.network, "LTP", "network")
    assert table[2] == "| smoke | 2 | **82.50** | 81.50 (+1.00 ± 0.00) |"


def test_over_networks_each_counts_once_whatever_its_seeds() -> None:
    accuracies = {
        ("a", "LTP", 0): 0.80, ("a", "LTP", 1): 0.90, ("a", "other", 0): 0.78, ("a", "other", 1): 0.84,  # 2, 6
        ("b", "LTP", 0): 0.70, ("b", "LTP", 1): 0.10, ("b", "other", 0): 0.69,  # 1: the second seed has no pair
        ("c", "LTP", 0): 0.50, ("a", "third", 0): 0.85, ("b", "third", 7): 0.1,
    }  # fmt: skip
    results = {Run(network, m, 5, s): {"accuracy": a} for (network, m, s), a in accuracies.items()}
    results[Run("a", "fourth", 3, 0)] = {"accuracy": 0.5}
    table = overall(results, lambda run: run.compression, lambda run: run.network, "LTP", "compression")
    assert table[0] == "| compression | other | third | fourth |"
    assert table[2:] == [
        f"| 5 | {signed([4.0, 1.0])} (least +1.00; 2 of 3) | -5.00 (least -5.00; 1 of 3) | – |",
        "| 3 | – | – | – |",
    ]


def test_goals_count_rows_by_their_means_and_name_those_that_miss() -> None:
    accuracies = {
        ("a", "LTP", 20.0): (0.80, 0.82), ("a", "magnitude", 20.0): (0.79, 0.82), ("a", "dense", 20.0): (0.82, 0.84),
        ("a", "LTP", 50.0): (0.76,), ("a", "magnitude", 50.0): (0.745, 0.9),
        ("b", "LTP", 20.0): (0.70,), ("b", "magnitude", 20.0): (0.71,),
        ("b", "LTP", 50.0): (0.70,),
    }  # fmt: skip
    results = {
        Run(network, method, compression, seed): {"accuracy": value}
        for (network, method, compression), values in accuracies.items()
        for seed, value in enumerate(values)
    }
    miss = "b, 20x: -1.00, the dense network –"
    assert goals(results) == [
        f"- at or above magnitude everywhere: 2 of 3 (not {miss})",
        f"- 0.5 points or more above magnitude at 20x: 1 of 2 (not {miss})",
        "- 1.5 points or more above magnitude at 50x: 1 of 1",
    ]
    results[Run("a", "magnitude", 20, 0)] = {"accuracy": 0.81}
    assert goals(results)[0] == (
        f"- at or above magnitude everywhere: 1 of 3 (not a, 20x: -0.50 ± 6.35, the dense network +1.50 ± 6.35; {miss})"
    )
