"""The clock of onnxruntime: one layer is that layer, a network is that network, and the caller's flags stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_prune.channels.latency.layers import LayerShape
from lightning_prune.channels.latency.meter import compare
from lightning_prune.export.meter import METERS, OnnxMeter, _one_layer, check_runtime

SHAPES = [
    LayerShape(4, 6, (7, 5), (3, 1), (2, 1), (1, 0), (1, 1), 2, batch=3),
    LayerShape(5, 2, (9,), batch=2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_layer_takes_and_gives_what_pytorch_does(shape: LayerShape) -> None:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(_one_layer(shape), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"x": torch.zeros(shape.input_shape).numpy()})
    x, weight = torch.zeros(shape.input_shape), torch.zeros(shape.weight_shape)
    if shape.kernel:
        expected = nn.functional.conv2d(x, weight, None, shape.stride, shape.padding, shape.dilation, shape.groups)
        assert shape.macs() == expected.numel() * weight[0].numel()
    else:
        expected = nn.functional.linear(x, weight)
        assert shape.macs() == expected.numel() * shape.inputs
    assert found.shape == tuple(expected.shape)


def test_networks_and_layers_are_timed_and_the_threads_denormals_stay() -> None:
    meter = OnnxMeter()
    big, small = (nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU()).eval() for width in (256, 2))
    assert all(seconds > 0 for seconds in meter.layers(SHAPES))
    latency = compare(meter, big, small, torch.randn(1, 3, 48, 48), batch=2)
    assert 0 < latency.ratio < 0.7
    assert (latency.batch, latency.runtime) == (2, "onnxruntime")
    assert "in onnxruntime at batch 2" in str(latency)
    assert float(torch.full((1,), 1e-39) * 1.0) != 0


def test_an_unknown_runtime_is_answered_by_name() -> None:
    with pytest.raises(ValueError, match=r"latency_runtime='onnx-runtime' must be one of .* Did you mean onnxruntime"):
        check_runtime("onnx-runtime")
    assert set(METERS) == {"eager", "onnxruntime"}
