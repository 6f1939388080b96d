"""The ONNX file computes what the network computes at any batch size, or nothing is written."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_prune.errors import ExportError
from lightning_prune.export.network import clocked, denormals, inputs_of, resized, strange_values, take_network
from lightning_prune.export.onnx_file import as_arrays, check_same, export_onnx
from lightning_prune.export.openvino_session import problem
from lightning_prune.export.runtimes import RUNTIMES, find_runtimes
from lightning_prune.masks import HardGate, attach, find_targets
from tests.export.networks import FixedBatch, Noisy, TwoInputs, X, compact, trained
from tests.toy import network


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    export_onnx(compact(), X[:1], path)
    return path


@pytest.mark.parametrize("runtime", list(RUNTIMES))
@pytest.mark.parametrize("batch", [None, 3])
def test_every_runtime_computes_what_the_network_does(file: Path, runtime: str, batch: int | None) -> None:
    session = RUNTIMES[runtime].load(file, "fp32", threads=1, batch=batch)
    for size in (1, 3, 7) if batch is None else (batch,):
        arguments = resized(X, size)
        (found,) = session(as_arrays(arguments))
        torch.testing.assert_close(torch.from_numpy(found), compact()(*arguments.args), atol=1e-4, rtol=1e-4)


def test_a_session_that_does_not_work_is_found_out_in_a_process_of_its_own(file: Path, tmp_path: Path) -> None:
    assert problem(file, 2, {}) == ""
    (tmp_path / "broken.onnx").write_bytes(file.read_bytes()[:100])
    assert problem(tmp_path / "broken.onnx", 2, {})
    with pytest.raises(ExportError):
        RUNTIMES["openvino"].load(tmp_path / "broken.onnx", "int8", 1)


def test_a_crash_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    monkeypatch.setattr(Path, "read_text", lambda self: crash)
    assert problem(file, 2, {}) == "OpenVINO crashes (signal 11)"


def test_another_network_is_told_apart(file: Path) -> None:
    other = copy.deepcopy(compact())
    with torch.no_grad():
        other[0].weight[0] *= 1.5
    check_same(compact(), X, file)
    with pytest.raises(ExportError, match=r"output 0 of net.onnx is not what Sequential computes at batch 1: .* apart"):
        check_same(other, X, file)
    with pytest.raises(ExportError, match=r"is not what Noisy computes at batch 1"):
        check_same(Noisy(), X, file)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    export_onnx(TwoInputs().eval(), {"x": torch.randn(2, 3), "y": torch.randn(2, 2)}, tmp_path / "two.onnx")
    session = RUNTIMES["onnxruntime"].load(tmp_path / "two.onnx", "fp32", 1)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    assert [out.shape for out in session([x.numpy(), y.numpy()])] == [(5, 4), (5, 2)]


def test_a_fixed_batch_size_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"fixed.* FixedBatch. The batch must be the first dimension"):
        export_onnx(FixedBatch(), torch.randn(2, 3), tmp_path / "fixed.onnx")


def test_a_network_that_is_being_sparsified_is_refused() -> None:
    net = network()
    targets, _ = find_targets(net)
    attach(net, {t.name: HardGate(torch.tensor(0.0)) for t in targets})
    with pytest.raises(ExportError, match="being sparsified"):
        take_network(net)


def test_samples_of_another_batch_size_differ() -> None:
    (found,), _ = resized(X, 5)
    assert found.shape == (5, 1, 8, 8)
    assert len(torch.unique(found.flatten(1), dim=0)) == 5
    torch.testing.assert_close(found[0], X[0])
    (given,), _ = inputs_of((X.double(), torch.zeros(2)))
    assert torch.equal(given, X)
    assert torch.equal(inputs_of({"x": X}).kwargs["x"], X)


def test_what_makes_timings_untrustworthy_is_said() -> None:
    assert strange_values(trained(), resized(X, 1)) == []
    assert "2 of 2 BatchNorm layers have seen no data" in strange_values(network().eval(), resized(X, 1))[0]
    tiny = nn.Sequential(nn.Linear(4, 4, bias=False))
    with torch.no_grad(), denormals(flushed=False):
        tiny[0].weight.copy_(torch.eye(4) * 1e-39)
    (line,) = strange_values(tiny, resized(torch.ones(1, 4), 1))
    assert line.startswith("Up to 100.0% of a layer's activations are denormal")


def flushes() -> bool:
    return float(torch.full((1,), 1e-39) * 1.0) == 0


def test_flushing_denormals_ends_with_the_measurement(file: Path) -> None:
    with denormals(flushed=False):
        with clocked(1):
            RUNTIMES["onnxruntime"].load(file, "fp32", 1)(as_arrays(resized(X, 1)))
            assert flushes()
        assert not flushes()


def test_runtimes_by_name() -> None:
    assert [r.name for r in find_runtimes(["openvino"])] == ["openvino"]
    assert {r.name for r in find_runtimes(None)} <= set(RUNTIMES)
    for wrong in ([], ["tvm"], "onnxruntime"):
        with pytest.raises(ValueError, match=r"must be a list out of \['onnxruntime', 'openvino'\]"):
            find_runtimes(wrong)
