"""The benchmark of deployed networks: a tiny run of it, and the ratios on made-up times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import deploy


def test_a_tiny_run_writes_results_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "deploy.jsonl"
    deploy.main(["--smoke", "--out", str(out)])
    lines = out.read_text().splitlines()
    assert [(r["model"], r["batch"]) for r in map(json.loads, lines)] == [("toy", 1)]
    deploy.main(["--smoke", "--out", str(out)])
    assert out.read_text().splitlines() == lines
    page = (tmp_path / "deploy.md").read_text()
    assert page.count("| toy | 1 |") == 2


def test_ratios() -> None:
    def form(network: str, runtime: str, precision: str, seconds: float) -> dict[str, object]:
        return {"network": network, "runtime": runtime, "precision": precision, "bytes": 1, "seconds": seconds}

    record = {"candidates": [
        form("dense", "onnxruntime", "fp32", 8.0), form("dense", "openvino", "fp32", 6.0),
        form("dense", "openvino", "int8", 4.0), form("pruned", "onnxruntime", "fp32", 5.0),
        form("pruned", "openvino", "fp32", 3.0), form("pruned", "onnxruntime", "int8", 2.0),
    ]}  # fmt: skip
    expected = {"onnxruntime fp32": 1.6, "openvino fp32": 2.0, "own": 4.0, "fastest fp32": 3.0, "fastest": 2.0}
    assert deploy.ratios(record) == pytest.approx(expected)
