"""int8 files: near to the network, with the node types that are fast, calibrated without holding the batches."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from lightning_prune.errors import CalibrationError
from lightning_prune.export.network import resized
from lightning_prune.export.onnx_file import as_arrays, export_onnx
from lightning_prune.export.quantize import quantize
from lightning_prune.export.runtimes import RUNTIMES
from tests.export.networks import Depthwise, X, batches, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8")
    torch.manual_seed(0)
    export_onnx(trained(), X, path / "toy.onnx")
    export_onnx(Depthwise().eval(), X, path / "thin.onnx")
    return path


def test_int8_is_near_to_the_network(folder: Path) -> None:
    quantize(folder / "toy.onnx", folder / "toy8.onnx", batches())
    arguments = resized(batches()[0][0], 16)
    expected = trained()(*arguments.args).detach()
    for runtime in RUNTIMES.values():
        (found,) = runtime.load(folder / "toy8.onnx", "int8", 1)(as_arrays(arguments))
        assert (torch.from_numpy(found) - expected).abs().max() < 0.1 * expected.abs().max()
        assert not np.array_equal(found, expected.numpy())  # it is int8 after all


def test_weights_are_signed_per_channel_and_activations_unsigned(folder: Path) -> None:
    quantize(folder / "toy.onnx", folder / "types.onnx", batches())
    graph = onnx.load(folder / "types.onnx").graph
    stored = {i.name: i for i in graph.initializer}
    conv = next(n for n in graph.node if n.op_type == "Conv")
    weight = next(n for n in graph.node if n.output[0] == conv.input[1])
    assert weight.op_type == "DequantizeLinear"
    assert stored[weight.input[0]].data_type == TensorProto.INT8
    assert len(numpy_helper.to_array(stored[weight.input[1]])) == 8  # a scale for each output channel
    zero_points = [stored[n.input[2]].data_type for n in graph.node if n.op_type == "QuantizeLinear"]
    assert set(zero_points) == {TensorProto.UINT8}


def quantized_convolutions(path: Path) -> list[bool]:
    graph = onnx.load(path).graph
    made_by = {out: n.op_type for n in graph.node for out in n.output}
    return [made_by.get(n.input[1]) == "DequantizeLinear" for n in graph.node if n.op_type == "Conv"]


def test_mixed_leaves_thin_layers_in_float(folder: Path) -> None:
    quantize(folder / "thin.onnx", folder / "all.onnx", batches())
    quantize(folder / "thin.onnx", folder / "mixed.onnx", batches(), partly=True)
    assert quantized_convolutions(folder / "all.onnx") == [True, True, True]
    assert quantized_convolutions(folder / "mixed.onnx") == [True, False, False]
    kinds = {n.op_type for n in onnx.load(folder / "mixed.onnx").graph.node}
    assert "DequantizeLinear" in kinds


class Loader:
    """Makes a batch at a time, and knows how many of them were alive at once."""

    def __init__(self, n: int) -> None:
        self.n, self.alive, self.most = n, 0, 0

    def __iter__(self) -> Iterator[Any]:
        for i in range(self.n):
            x = torch.full((4, 1, 8, 8), float(i))
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(x, self._gone)
            yield x, torch.zeros(4)
            del x

    def _gone(self) -> None:
        self.alive -= 1


def test_calibration_holds_a_batch_or_two_however_many_there_are(folder: Path) -> None:
    loader = Loader(12)
    quantize(folder / "toy.onnx", folder / "lazy.onnx", loader)
    assert 1 <= loader.most <= 3


def test_no_batch_is_an_error(folder: Path) -> None:
    with pytest.raises(CalibrationError, match="calibration= has no batch"):
        quantize(folder / "toy.onnx", folder / "none.onnx", [])
