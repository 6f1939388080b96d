"""What `deploy` measured and wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Candidate:
    """One way to run a network, and what it was measured to be.

    Attributes:
        network: "pruned" for the network that was given, "dense" for the one it is compared with.
        runtime: "onnxruntime" or "openvino".
        precision: "fp32" or "int8".
        bytes: size of its ONNX file.
        seconds: median time of a call.
        accuracy: the metric on the validation data; None if it was not measured.
    """

    network: str
    runtime: str
    precision: str
    bytes: int
    seconds: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Deployed:
    """The candidate that was written, and the others beside it. ``print`` shows a table; notebooks show it as HTML.

    Attributes:
        path: the ONNX file that was written.
        chosen: what is in it, and the runtime that it is fastest in.
        candidates: all that were measured, the chosen one among them.
        dense: the dense network in the same runtimes; empty if there was none to compare with.
        accuracy: of the network that was given, run by PyTorch; None without validation data.
        max_drop: what the chosen one was allowed to lose of that.
        batch, threads: what the times are for.
        notes: what helped, what did not, and what is not known.
    """

    path: Path
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    dense: tuple[Candidate, ...]
    accuracy: float | None
    max_drop: float
    batch: int
    threads: int
    notes: tuple[str, ...]
