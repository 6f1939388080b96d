"""Static int8: weights per channel, activations from calibration batches, as QDQ nodes in an ONNX file.

Activations are unsigned and weights signed, the pair for which x86 has kernels (signed activations take several times
as long there). Dynamic quantization, which finds ranges anew in each call, is not offered: for convolutions it is
several times slower than float32.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning_prune.errors import CalibrationError
from lightning_prune.export.network import inputs_of
from lightning_prune.export.onnx_file import as_arrays
from lightning_prune.export.runtimes import need

PARTLY = ("Conv", "MatMul", "Gemm")  # what "mixed" quantizes


def quantize(source: Path, path: Path, batches: Iterable[Any], *, partly: bool = False) -> None:
    """Writes an int8 form of an ONNX file.

    Ranges are minima and maxima over the batches, which the calibration finds as it goes: it takes the memory of one
    batch, however many there are.

    Args:
        source: a float32 file that `export_onnx` wrote.
        path: the file to write.
        batches: inputs, or (input, labels), as a loader gives them.
        partly: leave depthwise and grouped convolutions, those on single pixels (squeeze-excite) and everything that is
            no convolution or matrix product in float32: int8 costs more there than it saves.

    Raises:
        CalibrationError: there is no batch.
        ModuleNotFoundError: the extra "onnx" is not installed.
    """
    need("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, names: list[str]) -> None:
            self.feeds = _feeds(names, batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        level, root = logging.root.level, logging.getLogger()
        root.setLevel(logging.ERROR)  # it recommends what was just done
        try:
            quant_pre_process(onnx.load(source), prepared)
            graph = onnx.load(prepared).graph
            quantize_static(
                prepared, path, Reader([each.name for each in graph.input]),
                quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=saturates(),
                op_types_to_quantize=list(PARTLY) if partly else None,
                nodes_to_exclude=thin_layers(graph) if partly else None,
            )  # fmt: skip
        finally:
            root.setLevel(level)


def _feeds(names: list[str], batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    count = 0
    for count, batch in enumerate(batches, 1):  # noqa: B007
        yield dict(zip(names, as_arrays(inputs_of(batch)), strict=True))
    if not count:
        raise CalibrationError("calibration= has no batch: give a loader or a list that can be read more than once")


def thin_layers(graph: Any) -> list[str]:
    """Names of an ONNX graph's convolutions that do little work for each value they read: grouped, or on one pixel."""
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    found = []
    for node in graph.node:
        if node.op_type == "Conv":
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            pixels = shapes.get(node.output[0], [])[2:]
            if groups > 1 or (pixels and all(size == 1 for size in pixels)):
                found.append(str(node.name))
    return found


def saturates() -> bool:
    """Whether sums of int8 products may overflow on this CPU, so that weights must do with 7 bits: x86 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    return "avx512_vnni" not in flags and "avx_vnni" not in flags
