"""Sessions of OpenVINO, and a trial of them in a process of its own. This file imports nothing else of the package.

OpenVINO 2026.4 ends the whole process by a segmentation fault on some int8 networks with a fixed batch size (mixnet_s).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_PATIENCE = 120  # seconds


@cache
def core() -> Any:
    """OpenVINO's one entry."""
    import openvino

    return openvino.Core()


def open_request(path: str, batch: int | None, settings: Mapping[str, Any]) -> Any:
    """An inference request of an ONNX file on the CPU; with ``batch``, for that batch size alone."""
    model = core().read_model(path)
    if batch is not None:
        shapes = {each: each.partial_shape for each in model.inputs}
        for shape in shapes.values():
            if len(shape) and shape[0].is_dynamic:
                shape[0] = batch
        model.reshape(shapes)
    return core().compile_model(model, "CPU", dict(settings)).create_infer_request()


def problem(path: Path, batch: int | None, settings: Mapping[str, Any]) -> str:
    """Why a session does not work, tried with zeros in a child process; "" if it does."""
    arguments = [str(path), json.dumps(batch), json.dumps(dict(settings))]
    command = [sys.executable, "-c", Path(__file__).read_text(), *arguments]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return f"it takes more than {_PATIENCE} seconds to start"
    if child.returncode < 0:
        return f"OpenVINO crashes (signal {-child.returncode})"
    last = (child.stderr.strip().splitlines() or ["it fails"])[-1]
    return last if child.returncode else ""


def _try(path: str, batch: str, settings: str) -> None:
    request = open_request(path, json.loads(batch), json.loads(settings))
    request.infer([_zeros(each) for each in request.model_inputs])


def _zeros(port: Any) -> Any:
    import numpy

    shape: Sequence[Any] = port.partial_shape
    return numpy.zeros([1 if size.is_dynamic else size.get_length() for size in shape], port.element_type.to_dtype())


if __name__ == "__main__":
    _try(*sys.argv[1:])
