"""What `deploy` measured and wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_prune.support.table import Shown, Table, mib, ms, percent


@dataclass(frozen=True)
class Candidate:
    """One way to run a network, and what it was measured to be.

    Attributes:
        network: "pruned" for the network that was given, "dense" for the one it is compared with.
        runtime: "onnxruntime" or "openvino".
        precision: "fp32"; "bf16", the same file computed in bfloat16; "int8"; or "mixed", int8 in all layers but the
            depthwise and squeeze-excite ones and what lies between.
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

    def __str__(self) -> str:
        return f"{self.network} {self.precision} in {self.runtime}"


@dataclass(frozen=True)
class Deployed(Shown):
    """The candidate that was written, and the others beside it. ``print`` shows a table; notebooks show it as HTML.

    Attributes:
        path: the ONNX file that was written.
        chosen: what is in it, and the runtime that it is fastest in.
        candidates: all that were measured, the chosen one among them.
        dense: the dense network in the same runtimes and precisions; empty if there was none to compare with.
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

    @property
    def speedup(self) -> float | None:
        """Time of the dense network in float32 / time of the chosen one, in the same runtime; None without a dense."""
        own = [d.seconds for d in self.dense if (d.runtime, d.precision) == (self.chosen.runtime, "fp32")]
        return own[0] / self.chosen.seconds if own else None

    @property
    def speedup_of_fastest(self) -> float | None:
        """Time of the fastest dense candidate, of any runtime and precision, / time of the chosen one."""
        fastest = fastest_of(self.dense)
        return fastest.seconds / self.chosen.seconds if fastest else None

    def table(self) -> Table:
        """A row a candidate, the dense ones first; what was written is marked."""
        measured = ("accuracy", "file", "latency", "dense fp32", "fastest dense", "")
        return Table(
            ("network", "runtime", "precision", *measured),
            [self._row(c) for c in (*self.dense, *self.candidates)],
            above=[
                f"CPU latency at batch {self.batch}, threads {self.threads}: medians of calls in turn; how many times",
                "as long the dense network takes in fp32 in the same runtime, and in its own fastest form",
            ],
            below=[f"wrote {self.path}: {self.chosen}", *self.notes],
            left=3,
        )

    def _row(self, c: Candidate) -> Sequence[str]:
        own = next((d for d in self.dense if (d.runtime, d.precision) == (c.runtime, "fp32")), None)
        ratios = [f"{d.seconds / c.seconds:.2f}x" if d else "-" for d in (own, fastest_of(self.dense))]
        chosen = "written" if c is self.chosen else ""
        return (c.network, c.runtime, c.precision, percent(c.accuracy), mib(c.bytes), ms(c.seconds), *ratios, chosen)


def fastest_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """The one of the least time, if there is any."""
    return min(candidates, key=lambda c: c.seconds, default=None)


def choose(
    candidates: Sequence[Candidate], accuracy: float | None, max_drop: float, asked: Sequence[str] = ()
) -> Candidate | None:
    """The fastest candidate that loses no more than it may; None if all lose more. fp32 computes the same: it may.

    Args:
        candidates: as measured.
        accuracy: of the network itself; None: it is not known, and only what computes the same may be chosen.
        max_drop: what may be lost of it.
        asked: precisions that the user named, which may be chosen without their accuracy being known.
    """
    if accuracy is None:
        allowed = [c for c in candidates if c.precision == "fp32" or c.precision in asked]
    else:
        least = accuracy - max_drop
        allowed = [c for c in candidates if c.precision == "fp32" or (c.accuracy is not None and c.accuracy >= least)]
    return fastest_of(allowed)
