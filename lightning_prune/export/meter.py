"""onnxruntime as what takes the time of layers and networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lightning_prune.channels.latency.layers import LayerShape
from lightning_prune.channels.latency.meter import EagerMeter, Meter, least_seconds
from lightning_prune.export.network import denormals, resized
from lightning_prune.export.onnx_file import as_arrays, export_onnx
from lightning_prune.export.runtimes import OnnxRuntime, need
from lightning_prune.support.latency import Call, Clock
from lightning_prune.support.near import did_you_mean

_OPSET, _IR = 18, 9


class OnnxMeter:
    """onnxruntime on the CPU, with as many threads as PyTorch has now. Needs the extra "onnx"."""

    runtime = "onnxruntime"

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        need("onnx", "onnxscript", "onnxruntime")
        self.clock, self.version = clock, version("onnxruntime")

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def layers(self, shapes: Sequence[LayerShape]) -> list[float]:
        import numpy

        with TemporaryDirectory() as folder, denormals(flushed=True):
            calls = []
            for i, shape in enumerate(shapes):
                path = Path(folder) / f"{i}.onnx"
                path.write_bytes(_one_layer(shape))
                x = numpy.zeros(shape.input_shape, dtype=numpy.float32)
                calls.append(partial(OnnxRuntime().load(path, "fp32", self.threads), [x]))
            return least_seconds(calls, self.clock)

    def load(self, network: nn.Module, example_input: Any, batch: int) -> Call:
        with TemporaryDirectory() as folder, denormals(flushed=True):
            export_onnx(network.eval().float(), example_input, path := Path(folder) / "network.onnx")
            session = OnnxRuntime().load(path, "fp32", self.threads, batch)
        arrays = as_arrays(resized(example_input, batch))

        def call() -> object:
            with denormals(flushed=True):
                return session(arrays)

        return call


def _one_layer(shape: LayerShape) -> bytes:
    """An ONNX file of one convolution or linear layer, of zeros."""
    import numpy
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy.zeros(shape.weight_shape, dtype=numpy.float32)
    if shape.kernel:
        node = helper.make_node(
            "Conv", ["x", "w"], ["y"], kernel_shape=shape.kernel, strides=shape.stride, dilations=shape.dilation,
            pads=[*shape.padding, *shape.padding], group=shape.groups,
        )  # fmt: skip
    else:
        node, weight = helper.make_node("MatMul", ["x", "w"], ["y"]), weight.T.copy()
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape.input_shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "layer", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return bytes(model.SerializeToString())


METERS: dict[str, Callable[[], Meter]] = {"eager": EagerMeter, "onnxruntime": OnnxMeter}


def check_runtime(runtime: str) -> None:
    """Raise ValueError for the name of a runtime that has no clock here."""
    if runtime not in METERS:
        hint = did_you_mean(runtime, list(METERS))
        raise ValueError(f"latency_runtime={runtime!r} must be one of {list(METERS)}. {hint}".strip())
