"""The table: every cell is measured, on the network that is saved."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_prune import load_pruned, sparsity_report
from tests.cli.job import fit, rows


@pytest.mark.parametrize(
    ("method", "phases"),
    [
        ("LTPCallback", ["--prune.warmup=1", "--prune.sparsify=2"]),  # to the end: nothing is left to finetune
        ("MRTSCallback", ["--prune.warmup=1", "--prune.sparsify=2"]),
        ("MRTSCallback", ["--prune.warmup=2 steps", "--prune.sparsify=6 steps"]),  # a warm-up shorter than an epoch
        # no validation in the fit
        ("LTPCallback", ["--prune.warmup=0", "--prune.sparsify=1", "--trainer.check_val_every_n_epoch=10"]),
    ],
    ids=["to the end, weights", "to the end, channels", "short warm-up", "no validation"],
)
def test_no_cell_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, phases: list[str]) -> None:
    fit(tmp_path, f"--prune={method}", phases=phases)
    row = rows(capsys.readouterr().out)
    assert len(re.findall(r"\d+\.\d\d%", row["val/acc"])) == 2


def test_a_fast_dev_run_has_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, "--trainer.fast_dev_run=2", phases=[])
    assert len(re.findall(r"\d+\.\d\d%", rows(capsys.readouterr().out)["val/acc"])) == 2


def test_channels_and_macs_are_shares_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, "--prune=MRTSCallback", "--prune.target_macs=0.9")
    out = capsys.readouterr().out
    row = rows(out)
    macs, channels = (float(re.findall(r"([\d.]+)%", row[name])[1]) for name in ("MACs", "removable channels"))
    assert 89 <= macs <= 90
    assert 80 < channels < 100
    (path,) = tmp_path.rglob("pruned.safetensors")
    dense, pruned = map(int, re.findall(r"\d+", row["prunable weights"].replace(",", "")))
    assert sparsity_report(load_pruned(path)).prunable == pruned < dense


def test_parameters_of_lower_ranks_are_a_share_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, "--prune=FLOPCallback", "--prune.target_params=0.6")
    row = rows(capsys.readouterr().out)
    share = float(re.findall(r"([\d.]+)%", row["parameters"])[1])
    assert 59 <= share <= 60
    assert "removable channels" not in row
    (path,) = tmp_path.rglob("pruned.safetensors")
    dense, pruned = map(int, re.findall(r"\d+", row["prunable weights"].replace(",", "")))
    report = sparsity_report(load_pruned(path))
    assert (report.prunable + report.removed, report.prunable) == (dense, pruned)
    assert report.parameters / (report.parameters + report.removed) == pytest.approx(share / 100, abs=1e-4)


def test_a_resumed_run_knows_the_dense_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "a", "--prune=MRTSCallback", "--trainer.max_epochs=3")
    whole = rows(capsys.readouterr().out)
    checkpoint = max((tmp_path / "a").rglob("*.ckpt"), key=lambda file: file.stat().st_mtime)  # of the compact network
    fit(tmp_path / "b", "--prune=MRTSCallback", "--trainer.max_epochs=4", f"--ckpt_path={checkpoint}")
    resumed = rows(capsys.readouterr().out)
    for name in ("prunable weights", "removable channels", "MACs", "compression"):
        assert whole[name] == resumed[name]
    assert whole["val/acc"].split()[1] == resumed["val/acc"].split()[1]
    assert whole["file"].split()[1] == resumed["file"].split()[1]
