"""The runtimes that an ONNX file is measured in, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lightning_prune.errors import ExportError
from lightning_prune.export.openvino_session import core, open_request, problem

Session = Callable[[Sequence[Any]], list[Any]]
"""Numpy arrays, in the order of the inputs, to numpy arrays."""

_EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}


PRECISIONS = ("fp32", "bf16", "int8", "mixed")
"""bf16: the float32 file, computed in bfloat16. int8: whatever can be. mixed: int8 in the large layers alone."""


class Runtime(Protocol):
    """What runs an ONNX file.

    Attributes:
        name: as users know it.
        precisions: those of `PRECISIONS` that it can run on this CPU.
    """

    name: str

    @property
    def precisions(self) -> tuple[str, ...]: ...

    def load(self, path: Path, precision: str, threads: int, batch: int | None = None) -> Session:
        """A session of so many threads that flushes denormals; with ``batch``, for that batch size alone.

        Raises whatever the runtime raises of a file that it cannot run, or `ExportError`.
        """
        ...

    def settings(self, precision: str) -> dict[str, Any]:
        """What a session has to be told for that precision, where it is not what the runtime does by itself."""
        ...


class OnnxRuntime:
    """onnxruntime on the CPU."""

    name = "onnxruntime"
    precisions = ("fp32", "int8", "mixed")

    def settings(self, precision: str) -> dict[str, Any]:
        return {}

    def load(self, path: Path, precision: str, threads: int, batch: int | None = None) -> Session:
        need("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if batch is not None:
            options.add_free_dimension_override_by_name("batch", batch)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        return lambda arrays: list(session.run(None, dict(zip(names, arrays, strict=True))))


class OpenVino:
    """OpenVINO on the CPU. By itself it computes floats in bfloat16 where the CPU can: float32 is asked for.

    What an int8 file leaves in floats is computed as OpenVINO does by itself.
    """

    name = "openvino"

    @property
    def precisions(self) -> tuple[str, ...]:
        able = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return PRECISIONS if able else tuple(p for p in PRECISIONS if p != "bf16")

    def settings(self, precision: str) -> dict[str, Any]:
        hints = {"fp32": "f32", "bf16": "bf16"}
        return {"INFERENCE_PRECISION_HINT": hints[precision]} if precision in hints else {}

    def load(self, path: Path, precision: str, threads: int, batch: int | None = None) -> Session:
        need("openvino")
        told = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "CPU_DENORMALS_OPTIMIZATION": True,
            **self.settings(precision),
        }
        if precision in ("int8", "mixed") and (why := problem(path, batch, told)):
            raise ExportError(why)
        request = open_request(str(path), batch, told)
        return lambda arrays: list(request.infer(list(arrays)).values())


RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (OnnxRuntime(), OpenVino())}


def find_runtimes(names: Sequence[str] | None) -> list[Runtime]:
    """The runtimes of these names; None: those that are installed.

    Raises:
        ValueError: a name is unknown, or there is none.
        ModuleNotFoundError: one is not installed.
    """
    if names is None:
        return [runtime for name, runtime in RUNTIMES.items() if find_spec(name) is not None]
    if isinstance(names, str) or not names or not set(names) <= RUNTIMES.keys():
        raise ValueError(f"runtimes={names!r} must be a list out of {list(RUNTIMES)}, or None for those installed.")
    need(*names)
    return [RUNTIMES[name] for name in names]


def need(*modules: str) -> None:
    """Raises ModuleNotFoundError, naming the extra, where one of these is not installed."""
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f'{module} is not installed: pip install "lightning-prune[{_EXTRAS[module]}]"')
