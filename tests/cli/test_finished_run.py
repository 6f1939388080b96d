"""Channels removed and then weights zeroed, in one command; and the commands that take what such a run leaves."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_prune import TimmClassifier, Trail, load_pruned, plan_of, save_pruned, sparsity_report
from lightning_prune.cli.app import main
from lightning_prune.zoo.data import DigitsDataModule
from tests.cli.job import fit, rows

Run = Callable[..., str]
TWO = ["--prune=MRTSCallback", "--prune.target_macs=0.5", "--then=LTPCallback", "--then.target_sparsity=0.7"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and what it printed."""
    path, out = tmp_path_factory.mktemp("run"), io.StringIO()
    options = ["--then.trail=[0.9,0.5]", "--trainer.max_epochs=5", "--trainer.enable_model_summary=true"]
    with redirect_stdout(out):
        fit(path, *TWO, *options, phases=[])
    return path / "lightning_logs" / "version_0", out.getvalue()


@pytest.fixture
def folder(finished: tuple[Path, str]) -> Path:
    return finished[0]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in an empty folder, and gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def runs(*args: object) -> str:
        main([str(arg) for arg in args])
        return capsys.readouterr().out

    return runs


def metric(out: str, name: str) -> float:
    """A number of Lightning's table."""
    found = re.search(rf"{name}\s+│\s+([\d.]+)", out)
    assert found is not None, out
    return float(found[1])


def test_two_methods_meet_both_targets_and_one_file_holds_the_result(finished: tuple[Path, str]) -> None:
    folder, out = finished
    network = load_pruned(folder / "pruned.safetensors")
    report = sparsity_report(network)
    assert plan_of(network) is not None
    assert report.sparsity == pytest.approx(0.7, abs=1e-4)
    found = json.loads((folder / "results.json").read_text())
    assert 0.45 < found["macs"] <= 0.5
    assert found["prunable weights"][1] == report.prunable < found["prunable weights"][0]
    assert found["compression"] == pytest.approx(report.dense_compression)
    assert found["input"] == [1, 32, 32]
    table = rows(out)
    assert table["MACs"].split()[1:] == ["100.00%", f"{found['macs']:.2%}"]
    assert f"({report.sparsity:.2%})" in table["zeros among them"]


def test_the_first_table_counts_flops_and_tensorboard_logs(finished: tuple[Path, str]) -> None:
    folder, out = finished
    assert re.search(r"Total FLOPs: [1-9]", out)
    assert list(folder.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("kind", ["pruned.safetensors", "checkpoints/*.ckpt"])
def test_validation_of_what_was_saved_is_that_of_the_run(kind: str, folder: Path, run: Run) -> None:
    """With the run's own options: model, data and number of batches are in its config.yaml alone."""
    last = max(folder.glob(kind), key=lambda file: file.stat().st_mtime)
    out = run("validate", last)
    assert f"options of the run from {folder / 'config.yaml'}" in out
    expected = json.loads((folder / "results.json").read_text())["val/acc"][1]
    assert metric(out, "val/acc") == pytest.approx(expected, abs=1e-6)
    assert not list(Path().iterdir())  # no logs, no checkpoints


def test_predictions_are_those_of_the_file(folder: Path, run: Run) -> None:
    out = run("predict", folder / "pruned.safetensors", "--out=deep/digits.csv")
    assert "saved deep/digits.csv: 359 predictions" in out
    data = DigitsDataModule(batch_size=359)
    data.setup()
    images, labels = next(iter(data.test_dataloader()))
    with torch.no_grad():
        probabilities, classes = load_pruned(folder / "pruned.safetensors").eval()(images).softmax(1).max(1)
    with Path("deep/digits.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["index", "class", "probability"]
    assert [int(row["index"]) for row in found] == list(range(359))
    assert [int(row["class"]) for row in found] == classes.tolist()
    assert [float(row["probability"]) for row in found] == pytest.approx(probabilities.tolist(), abs=2e-6)
    right = sum(int(row["class"]) == label for row, label in zip(found, labels.tolist(), strict=True))
    assert metric(run("test", folder / "pruned.safetensors"), "test/acc") == pytest.approx(right / 359, abs=1e-6)


def test_data_that_do_not_fit_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "pruned.safetensors"
    with pytest.raises(SystemExit):
        main(["validate", str(file), "--data=tests.cli.job.ColourDigits"])
    assert f"{file} has in_chans=1, but ColourDigits has 3. Give the --data that" in capsys.readouterr().err


def test_a_report_of_a_run_has_zeros_and_cost(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(network: nn.Module, example: torch.Tensor, **options: int) -> str:
        assert plan_of(network) is not None
        return f"cost of {list(example.shape)} with {options}"

    monkeypatch.setattr("lightning_prune.cli.commands.report.cost_report", cost)  # `compare` calls the real one
    out = run("report", folder, "--batch=4")
    found = json.loads((folder / "results.json").read_text())
    assert out.startswith(f"{folder / 'pruned.safetensors'}: test_resnet.r160_in1k, a pruned file\n")
    assert f"{found['zeros']:,}" in rows(out)["total (prunable)"]
    assert out.endswith("cost of [1, 1, 32, 32] with {'batch': 4, 'threads': 1}\n")


def test_a_report_of_a_checkpoint_from_the_sparsify_phase_counts_what_it_pruned(folder: Path, run: Run) -> None:
    entry = Trail(folder / "trail").entries[0]
    alone = Path("alone.ckpt")
    alone.write_bytes(Path(entry.path).read_bytes())  # nothing beside it tells the size of an input
    out = run("report", alone)
    assert f"{entry.sparsity:.2%}" in rows(out)["total (prunable)"]
    assert "Give --input, such as 3x224x224" in out
    assert str(Trail(folder / "trail")) in run("report", folder / "trail")


def test_pick_writes_the_best_of_a_range(folder: Path, run: Run) -> None:
    entry = Trail(folder / "trail").pick(max_kept=0.95)
    out = run("pick", folder, "--max_kept=0.95", "--out=picked.safetensors")
    assert f"picked {entry.path}\nsaved picked.safetensors" in out
    assert sparsity_report(load_pruned("picked.safetensors")).sparsity == pytest.approx(entry.sparsity, abs=1e-4)


def test_compare_shows_two_models_side_by_side(folder: Path, run: Run) -> None:
    module = TimmClassifier("test_resnet")
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "callbacks": {}}
    torch.save(content | {"epoch": 0, "global_step": 0}, "dense.ckpt")
    out = run("compare", "dense.ckpt", folder, "--data=DigitsDataModule")
    assert "A  dense.ckpt: test_resnet, a checkpoint of epoch 0, step 0" in out
    found = json.loads((folder / "results.json").read_text())
    dense, left, share = re.findall(r"[\d.,]+", rows(out)["MACs"])
    assert int(left.replace(",", "")) / int(dense.replace(",", "")) == pytest.approx(float(share) / 100, abs=1e-3)
    assert float(share) / 100 == pytest.approx(found["macs"], abs=0.02)
    assert len(re.findall(r"[\d.]+%", rows(out)["accuracy"])) == 3


def test_deploy_writes_a_file_that_onnxruntime_runs(folder: Path, run: Run) -> None:
    import onnxruntime

    quick = ["--rounds=2", "--precisions=fp32", "--runtimes=onnxruntime"]
    out = run("deploy", folder, "--out=digits.onnx", *quick)
    assert "saved digits.onnx" in out
    session: Any = onnxruntime.InferenceSession("digits.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(3, 1, 32, 32)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = load_pruned(folder / "pruned.safetensors").eval()(images)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_the_same_data_are_used_without_saying_so(folder: Path, tmp_path: Path) -> None:
    """The configuration is found beside a file and beside the folder of checkpoints, and nowhere else."""
    from lightning_prune.cli.data import config_beside

    assert config_beside(folder / "pruned.safetensors") == folder / "config.yaml"
    assert config_beside(folder / "checkpoints" / "any.ckpt") == folder / "config.yaml"
    assert config_beside(tmp_path / "pruned.safetensors") is None


def test_rethink_trains_what_is_left_by_three_protocols(folder: Path, run: Run, tmp_path: Path) -> None:
    out = run("rethink", folder, "--epochs=1", "--seeds=0,1", "--data.subset=128", "--lr=0.01")
    assert out.startswith(f"{folder / 'pruned.safetensors'}: test_resnet")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines] == ["training", "finetuned", "Scratch-E", "Scratch-B"]
    share = json.loads((folder / "results.json").read_text())["macs"]
    assert [line[1] for line in lines[1:]] == ["1", "1", str(round(1 / share))]
    assert float(lines[2][2]) == pytest.approx(share, abs=6e-3)
    assert len(lines[1][4].split(", ")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds=0,b"], "--seeds 0,b: expected whole numbers, such as 0,1,2."),
        ([], "no config.yaml beside alone.safetensors tells how long it was trained: give --epochs."),
        (["--epochs=1"], "alone.safetensors does not tell the size of an image: give --input, such as 3x224x224."),
        (["--epochs=1", "--input=1x32x32", "--cap=0.5"], "cap=0.5 must be 1 or more"),
        (["--epochs=0", "--input=1x32x32"], "epochs=0 must be 1 or more"),
    ],
)
def test_rethink_says_what_it_needs_to_know_of_a_file_alone(
    options: list[str], message: str, folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "pruned.safetensors", "alone.safetensors")
    with pytest.raises(SystemExit):
        run("rethink", "alone.safetensors", *options)
    out, err = capsys.readouterr()
    assert err.startswith(f"lightning-prune rethink: error: {message}")
    assert err.count("\n") == 1
    assert not out


def test_rethink_refuses_zeros_alone(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    save_pruned(TimmClassifier("test_resnet"), "sparse.safetensors")
    with pytest.raises(SystemExit):
        run("rethink", "sparse.safetensors", "--epochs=1", "--input=1x32x32")
    assert "is not compact: expected a network whose channels were removed" in capsys.readouterr().err
