"""The command line: the main job in small, options from arguments and YAML, errors that jsonargparse gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lightning_prune import LTPCallback, load_pruned, sparsity_report
from lightning_prune.cli.app import main
from tests.cli.job import fit, rows


def test_main_job_prunes_reports_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path)
    out = capsys.readouterr().out
    row = rows(out)
    assert re.search(r"val/acc +\d+\.\d\d% +\d+\.\d\d%", row["val/acc"])
    assert "(90.00%)" in row["zeros among them"]
    assert "10.00x" in row["compression"]
    dense, pruned = map(float, re.findall(r"([\d.]+) MiB", row["file"]))
    assert pruned < 0.25 * dense
    (path,) = tmp_path.rglob("pruned.safetensors")
    assert str(path) in out
    assert sparsity_report(load_pruned(path)).sparsity == pytest.approx(0.9, abs=1e-4)


def test_other_methods_and_options_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, "--prune=MagnitudeCallback", "--prune.target_compression=4")
    assert "4.00x" in capsys.readouterr().out


def test_channels_are_removed_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, "--prune=MRTSCallback", "--prune.target_macs=0.5")
    out = capsys.readouterr().out
    row = rows(out)
    macs, channels = (float(re.findall(r"([\d.]+)%", row[name])[1]) for name in ("MACs", "removable channels"))
    assert 49 <= macs <= 50
    assert channels < 90
    (path,) = tmp_path.rglob("pruned.safetensors")
    dense, pruned = map(int, re.findall(r"\d+", row["prunable weights"].replace(",", "")))
    assert sparsity_report(load_pruned(path)).prunable == pruned < dense


def test_options_from_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "prune": {
            "class_path": "lightning_prune.LTPCallback",
            "init_args": {"target_sparsity": 0.5, "exclude": ["fc"], "warmup": "2 steps", "sparsify": "6 steps"},
        }
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    fit(tmp_path, "--config", str(tmp_path / "job.yaml"), phases=[])
    out = capsys.readouterr().out
    assert re.search(r"compression +1.00x +1\.\d\dx", out)  # half of what is prunable, the classifier left out


def test_every_argument_of_a_method_is_known_to_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--prune.help=LTPCallback"])
    out = capsys.readouterr().out
    for name in ("target_sparsity", "lam", "mode", "temperature", "min_keep", "trail", "recalibrate_batches"):
        assert f"--prune.{name}" in out.replace("init_args.", ""), name
    assert "share of prunable weights" in out or "share of weights to prune" in out


def test_wrong_values_are_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--prune.target_sparsity=much"])
    assert "much" in capsys.readouterr().err


def test_callback_from_trainer_callbacks_in_yaml() -> None:
    """Lightning's own way, without our command: class_path and init_args in ``trainer.callbacks``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--callback", type=LTPCallback)
    config = parser.parse_args(
        ["--callback=lightning_prune.LTPCallback", "--callback.target_compression=20", "--callback.warmup=2"]
    )
    callback = parser.instantiate_classes(config).callback
    assert callback.target_sparsity == pytest.approx(0.95)
    assert callback.durations[0] == 2


def test_without_jsonargparse_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_prune.cli.app.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"lightning-prune\[cli\]"):
        main(["fit"])
