"""`deploy`: a pruned network comes out as a file that runs without PyTorch, and with what was measured of it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

import lightning_prune
from lightning_prune import Deployed, ExportError, deploy, save_pruned
from lightning_prune.errors import CalibrationError
from lightning_prune.export.network import dense_form, take_network
from lightning_prune.plan.record import plan_of
from tests.export.networks import Depthwise, X, batches, compact, trained

# Runs a file where neither PyTorch nor this package can be imported.
ALONE = """
import json, sys
sys.modules["torch"] = sys.modules["lightning_prune"] = sys.modules["onnx"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
data = numpy.load(sys.argv[2])
right = [session.run(None, {"input": data["x"][:n]})[0].argmax(1) == data["y"][:n] for n in (1, 7, len(data["x"]))]
info = json.loads(session.get_modelmeta().custom_metadata_map["lightning_prune"])
print(json.dumps({"accuracy": float(right[-1].mean()), "info": info}))
"""


@pytest.fixture(scope="module")
def before() -> dict[str, torch.Tensor]:
    return copy.deepcopy(compact().state_dict())


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, before: Any) -> Deployed:
    out = tmp_path_factory.mktemp("deployed") / "new" / "net.onnx"
    options: dict[str, Any] = {"calibration": batches(), "validation": batches(seed=1), "rounds": 3}
    return deploy(compact(), X, out, max_drop=0.05, **options)


def test_every_form_is_measured_beside_the_dense_network(result: Deployed) -> None:
    forms = {(c.runtime, c.precision) for c in result.candidates}
    assert forms == {(c.runtime, c.precision) for c in result.dense}
    assert {("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32"), ("openvino", "int8")} <= forms
    assert not any(precision == "mixed" for _, precision in forms)  # there is no thin layer
    assert all(c.seconds > 0 and c.bytes > 0 for c in (*result.candidates, *result.dense))
    by = {(c.runtime, c.precision): c for c in result.candidates}
    assert by["onnxruntime", "int8"].bytes != by["onnxruntime", "fp32"].bytes
    assert all(c.accuracy == result.accuracy for c in result.candidates if c.precision == "fp32")
    assert result.accuracy is not None
    assert result.accuracy > 0.5
    assert all(c.accuracy is None for c in result.dense)
    text = str(result)
    assert text.count("written") == 1
    assert f"wrote {result.path}" in text
    assert "<table>" in result._repr_html_()


def test_the_network_is_left_as_it_was(result: Deployed, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(before[name], value) for name, value in compact().state_dict().items())
    assert plan_of(compact()) is not None


def test_the_file_runs_without_pytorch(result: Deployed, tmp_path: Path) -> None:
    images, labels = (torch.cat(parts).numpy() for parts in zip(*batches(seed=1), strict=True))
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    command = [sys.executable, "-c", ALONE, str(result.path), str(tmp_path / "data.npz")]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout)
    if result.chosen.runtime == "onnxruntime":
        assert said["accuracy"] == pytest.approx(result.chosen.accuracy)
    assert said["info"]["precision"] == result.chosen.precision
    assert said["info"]["runtime"] == result.chosen.runtime
    assert said["info"]["accuracy"] == {"written": result.chosen.accuracy, "network": result.accuracy}
    assert said["info"]["inputs"] == [{"shape": [None, 1, 8, 8], "dtype": "float32"}]
    assert said["info"]["versions"]["lightning_prune"] == lightning_prune.__version__
    assert [file.name for file in result.path.parent.iterdir()] == ["net.onnx"]


class Holder(LightningModule):
    """A network in a LightningModule that has no other parameters."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_a_lightning_module_a_file_and_a_baseline(tmp_path: Path) -> None:
    save_pruned(trained(), tmp_path / "dense.safetensors")
    quick: dict[str, Any] = {"runtimes": ["onnxruntime"], "rounds": 1}
    with pytest.raises(lightning_prune.PrunedFileError, match="without a timm name"):
        deploy(tmp_path / "dense.safetensors", X, tmp_path / "file.onnx", **quick)
    result = deploy(Holder(compact()), X, tmp_path / "held.onnx", baseline=trained(), validation=batches(), **quick)
    (chosen,) = result.candidates
    (dense,) = result.dense
    assert result.chosen is chosen
    assert dense.accuracy is not None  # a baseline that was given has an accuracy
    assert "int8 was not tried: it takes calibration= and validation= batches." in result.notes
    session = onnxruntime.InferenceSession(str(tmp_path / "held.onnx"))
    assert session.get_inputs()[0].shape[1:] == [1, 8, 8]


def test_int8_is_written_unmeasured_only_if_it_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quick: dict[str, Any] = {"runtimes": ["onnxruntime"], "rounds": 1, "calibration": iter(batches())}
    result = deploy(Depthwise(), X, tmp_path / "a.onnx", precisions=["mixed"], **quick)
    assert result.chosen.precision == "mixed"
    assert any(note.startswith("Accuracy is unknown") for note in result.notes)
    assert any(note.startswith("There is no dense network") for note in result.notes)
    with pytest.raises(ExportError, match=r"every candidate loses more than max_drop=0 of the accuracy 1.0000: pruned"):
        deploy(
            Depthwise(), X, tmp_path / "b.onnx", precisions=["mixed"], max_drop=0, validation=batches(16),
            metric=Scores([1.0, 0.5]), **{**quick, "calibration": batches(16)},
        )  # fmt: skip
    assert not (tmp_path / "b.onnx").exists()


class Scores:
    """A metric that says what it was told to."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def __call__(self, output: torch.Tensor, labels: Any) -> float:
        return next(self.values)


def test_the_dense_form_has_the_dense_shapes_and_no_holes() -> None:
    network, plans = take_network(compact())
    dense = dense_form(network, plans)
    assert dense is not None
    shapes = {name: p.shape for name, p in trained().named_parameters()}
    assert {name: p.shape for name, p in dense.named_parameters()} == shapes
    assert all(bool((p != 0).all()) for p in dense.parameters() if p.ndim > 1)
    torch.testing.assert_close(dense(X), compact()(X), atol=1e-5, rtol=1e-4)  # what was filled ends at a scale of zero
    assert dense_form(*take_network(trained())) is None


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "runtime": ({"runtimes": ["tvm"]}, ValueError, r"runtimes=\['tvm'\] must be a list out of"),
    "precision": ({"precisions": ["int4"]}, ValueError, r"precisions=\['int4'\] must be a list out of"),
    "drop": ({"max_drop": 1.5}, ValueError, r"max_drop=1.5 must be an absolute share"),
    "batch": ({"batch": 0}, ValueError, r"batch=0 must be a whole number from 1 on"),
    "threads": ({"threads": 0}, ValueError, r"threads=0 must be"),
    "int8 without data": ({"precisions": ["int8"]}, CalibrationError, r"needs calibration= batches"),
    "no validation batch": ({"validation": []}, CalibrationError, "validation= has no batch"),
    "NaN": ({"validation": batches(16), "metric": lambda *_: float("nan")}, CalibrationError, "validation= is nan"),
    "no labels": ({"validation": [X]}, CalibrationError, "Tensor without labels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str, tmp_path: Path) -> None:
    options, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        deploy(trained(), X, tmp_path / "a.onnx", **{"rounds": 1, **options})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is a folder"):
        deploy(trained(), X, tmp_path)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = lightning_prune.export.runtimes.find_spec
    monkeypatch.setattr(
        "lightning_prune.export.runtimes.find_spec", lambda name: None if name == "openvino" else found(name)
    )
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning-prune\[openvino\]"'):
        deploy(nn.Linear(4, 2), torch.randn(1, 4), tmp_path / "a.onnx", runtimes=["openvino"])
    result = deploy(nn.Linear(4, 2), torch.randn(1, 4), tmp_path / "a.onnx", rounds=1)
    assert {c.runtime for c in result.candidates} == {"onnxruntime"}
    assert any("lightning-prune[openvino]" in note for note in result.notes)
