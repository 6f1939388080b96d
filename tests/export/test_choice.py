"""Which candidate is written, and what is said of the others: on made-up measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lightning_prune import Candidate, Deployed
from lightning_prune.export.advice import advice
from lightning_prune.export.result import choose


def candidate(precision: str, ms: float, accuracy: float | None = None, **other: Any) -> Candidate:
    return Candidate(
        **{"network": "pruned", "runtime": "onnxruntime", "precision": precision, "bytes": 2**20, **other},
        seconds=ms / 1e3,
        accuracy=accuracy,
    )


def test_the_fastest_of_those_that_lose_no_more_than_they_may() -> None:
    full, half, eight = candidate("fp32", 4, 0.9), candidate("bf16", 3, 0.895), candidate("int8", 2, 0.85)
    assert choose([full, half, eight], 0.9, 0.01) is half
    assert choose([full, half, eight], 0.9, 0.06) is eight
    assert choose([full, half, eight], 0.9, 0.0) is full
    assert choose([half, eight], 0.9, 0.001) is None
    assert choose([candidate("fp32", 4, 0.8999)], 0.9, 0.0) is not None  # rounding: it computes the same


def test_without_accuracy_only_what_computes_the_same_or_is_asked_for() -> None:
    full, eight = candidate("fp32", 4), candidate("int8", 2)
    assert choose([full, eight], None, 0.5) is full
    assert choose([full, eight], None, 0.5, ["fp32", "int8"]) is eight
    assert choose([eight], None, 0.5) is None


def test_the_ratios_are_to_the_dense_network_in_the_same_runtime_and_to_the_fastest() -> None:
    chosen = candidate("int8", 2, 0.9)
    dense = (
        candidate("fp32", 8, network="dense"),
        candidate("fp32", 6, network="dense", runtime="openvino"),
        candidate("int8", 5, network="dense", runtime="openvino"),
    )
    result = Deployed(Path("a.onnx"), chosen, (candidate("fp32", 4, 0.9), chosen), dense, 0.9, 0.01, 1, 1, ("a note",))
    assert result.speedup == pytest.approx(4)
    assert result.speedup_of_fastest == pytest.approx(2.5)
    lines = str(result).splitlines()
    (written,) = [line for line in lines if "written" in line]
    assert " ".join(written.split()) == "pruned onnxruntime int8 90.00% 1.00 MiB 2.00 ms 4.00x 2.50x written"
    assert lines[-2:] == ["wrote a.onnx: pruned int8 in onnxruntime", "a note"]
    alone = Deployed(Path("a.onnx"), chosen, (chosen,), (), None, 0.01, 1, 1, ())
    assert (alone.speedup, alone.speedup_of_fastest) == (None, None)


DEPTHWISE = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4))
SAID: dict[str, tuple[dict[str, Any], str]] = {
    "no faster": ({"dense": [candidate("fp32", 4.1, network="dense")]}, "Pruning does not make this network faster"),
    "zeros": ({"zeros": 0.8}, "80% of the weights are zeros inside the tensors"),
    "int8 is slower": (
        {"candidates": [candidate("fp32", 4), candidate("int8", 5)]},
        "No gain by int8 (5.00 ms) in onnxruntime: fp32 takes 4.00 ms.",
    ),
    "depthwise": (
        {"candidates": [candidate("fp32", 4), candidate("int8", 5)], "network": DEPTHWISE},
        "1 of 2 convolutions are grouped or depthwise",
    ),
    "loses": (
        {"candidates": [candidate("fp32", 4, 0.9), candidate("int8", 2, 0.8)], "accuracy": 0.9},
        "pruned int8 in onnxruntime loses 10.00% of accuracy, more than max_drop=0.01: not offered.",
    ),
    "unknown": ({}, "Accuracy is unknown"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_does_not_help_is_said(name: str) -> None:
    given, text = SAID[name]
    quiet: dict[str, Any] = {
        "candidates": [candidate("fp32", 4, 0.9), candidate("int8", 2, 0.9)],
        "dense": [candidate("fp32", 8, network="dense")],
        "network": nn.Conv2d(1, 1, 1), "zeros": 0.0, "accuracy": 0.9, "max_drop": 0.01,
    }  # fmt: skip
    assert advice(**quiet) == []
    if name == "unknown":
        given = {"accuracy": None}
    found = advice(**(quiet | given))
    assert any(line.startswith(text) for line in found), found
