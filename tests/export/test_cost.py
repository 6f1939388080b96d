"""The cost report counts what is there, and times it where it can."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from lightning_prune import cost_report, save_pruned
from tests.export.networks import X, compact, trained


def test_macs_are_those_of_one_sample_worked_out_by_hand() -> None:
    def macs(network: nn.Module, example: torch.Tensor) -> int:
        return cost_report(network, example, rounds=0).model.macs

    assert macs(trained(), X) == 8 * 9 * 64 + 16 * 8 * 9 * 9 + 16 * 4  # 8x8, then 3x3 pixels
    assert macs(nn.Linear(3, 5), torch.randn(7, 3)) == 15
    attention = timm.layers.Attention(8, num_heads=2)  # fused on the CPU: 5 tokens, products of queries and keys too
    assert macs(attention, torch.randn(2, 5, 8)) == 5 * 8 * 32 + 2 * 5 * 5 * 8


def test_counts_and_files(tmp_path: Path) -> None:
    sparse = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        sparse.weight[8:] = 0
    report = cost_report(sparse, torch.randn(1, 64), nn.Linear(64, 64), rounds=0)
    cost, dense = report.model, report.baseline
    assert dense is not None
    assert (cost.parameters, cost.nonzeros, cost.macs) == (4096, 512, 4096)
    assert (dense.parameters, dense.dense_bytes) == (4160, 4 * 4160)
    assert cost.dense_bytes == 4 * 4096
    assert cost.zip_bytes == len(zlib.compress(sparse.weight.detach().numpy().tobytes()))
    assert cost.file_bytes == save_pruned(sparse, tmp_path / "a").stat().st_size
    assert cost.file_bytes < dense.file_bytes
    assert (cost.eager_seconds, cost.onnxruntime_seconds) == (None, None)
    rows = {row[0]: row for row in report.table().rows}
    assert rows["non-zero"] == ("non-zero", "4,160", "512", "12.3%")
    assert rows["PyTorch"] == ("PyTorch", "-", "-", "-")
    assert any("zeros inside tensors" in note for note in report.notes)


def test_a_compact_network_is_compared_with_its_dense_form() -> None:
    report = cost_report(compact(), X, rounds=1)
    assert report.baseline is not None
    assert report.baseline.parameters == sum(p.numel() for p in trained().parameters())
    assert report.baseline.macs == cost_report(trained(), X, rounds=0).model.macs > report.model.macs
    for cost in (report.model, report.baseline):
        assert cost.eager_seconds is not None
        assert cost.onnxruntime_seconds is not None
        assert cost.onnxruntime_seconds > 0
    assert "onnxruntime" in str(report)
    assert "<table>" in report._repr_html_()


def test_without_the_extra_there_is_no_time_in_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_prune.export.runtimes.find_spec", lambda name: None)
    report = cost_report(trained(), X, rounds=1)
    assert report.baseline is None
    assert report.model.eager_seconds is not None
    assert report.model.onnxruntime_seconds is None
    assert any('pip install "lightning-prune[onnx]"' in note for note in report.notes)
    assert [len(row) for row in report.table().rows] == [2] * 8
    with pytest.raises(ValueError, match="rounds=-1 must be a whole number from 0 on"):
        cost_report(trained(), X, rounds=-1)
