"""The candidates of a deployment: their ONNX files, their times in turn, their accuracy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.errors import CalibrationError, ExportError
from lightning_prune.export.network import inputs_of, runner
from lightning_prune.export.onnx_file import as_arrays, export_onnx, outputs_of
from lightning_prune.export.quantize import quantize
from lightning_prune.export.result import Candidate
from lightning_prune.export.runtimes import RUNTIMES, Runtime, Session
from lightning_prune.support.faults import explain
from lightning_prune.support.latency import interleaved
from lightning_prune.support.modes import mode

Metric = Callable[[Tensor, Any], float]
Files = Mapping[tuple[str, str], Path]
"""{(network, precision): ONNX file}; "bf16" has the float32 file."""


def write_files(
    networks: Mapping[str, nn.Module],
    example_input: Any,
    folder: Path,
    calibration: Iterable[Any] | None,
    precisions: Sequence[str],
) -> Files:
    """Writes the ONNX files of networks by name. calibration: needed for "int8" and "mixed"."""
    return {
        (name, precision): file
        for name, network in networks.items()
        for precision, file in _files(network, example_input, folder / name, calibration, precisions)
    }


def _files(
    network: nn.Module, example_input: Any, stem: Path, calibration: Iterable[Any] | None, wanted: Sequence[str]
) -> Iterator[tuple[str, Path]]:
    """Writes the ONNX files of a network: (precision, file)."""
    full = stem.with_name(f"{stem.name}.fp32.onnx")
    export_onnx(network, example_input, full)
    for precision in wanted:
        if precision in ("fp32", "bf16"):
            yield precision, full
            continue
        assert calibration is not None
        file = stem.with_name(f"{stem.name}.{precision}.onnx")
        quantize(full, file, calibration, partly=precision == "mixed")
        yield precision, file


def timed(
    files: Files, runtimes: Sequence[Runtime], arrays: Sequence[Any], threads: int, rounds: int
) -> tuple[list[Candidate], list[str]]:
    """Every network in every runtime and precision, timed in turn; and what does not run, with the reason."""
    found: list[Candidate] = []
    sessions: list[Session] = []
    failed: list[str] = []
    for (name, precision), file in files.items():
        for runtime in runtimes:
            if precision in runtime.precisions:
                c = Candidate(name, runtime.name, precision, file.stat().st_size, math.nan)
                try:
                    session = runtime.load(file, precision, threads, len(arrays[0]))
                    session(arrays)
                except Exception as error:  # runtimes have kinds of their own
                    failed.append(f"{c} does not run: {explain(error)}.")
                    continue
                sessions.append(session)
                found.append(c)
    if not any(c.network == "pruned" for c in found):
        names = [runtime.name for runtime in runtimes]
        wanted = list(dict.fromkeys(precision for _, precision in files))
        raise ExportError(" ".join([f"precisions={wanted!r}: none of them runs in {names} on this CPU.", *failed]))
    times = interleaved([partial(session, arrays) for session in sessions], rounds, warmup=3)
    return [replace(c, seconds=statistics.median(t)) for c, t in zip(found, times, strict=True)], failed


def run_candidate(files: Files, c: Candidate, threads: int) -> Callable[[Any], Sequence[Tensor]]:
    """A candidate as a function of `Arguments`, at any batch size."""
    session = RUNTIMES[c.runtime].load(files[c.network, c.precision], c.precision, threads)
    return lambda arguments: [torch.from_numpy(array) for array in session(as_arrays(arguments))]


def top1(output: Tensor, labels: Any) -> float:
    """Share of samples whose largest output [N, classes] is their label [N]."""
    return float((output.argmax(1) == torch.as_tensor(labels).cpu()).double().mean())


def network_accuracy(network: nn.Module, batches: Iterable[Any], metric: Metric | None = None) -> float:
    """`accuracy_of` a network in PyTorch, in eval mode; metric None: top-1 accuracy."""
    with mode(network, False):
        return accuracy_of(lambda given: outputs_of(runner(network)(given)), batches, metric or top1)


def accuracy_of(run: Callable[[Any], Sequence[Tensor]], batches: Iterable[Any], metric: Metric) -> float:
    """The mean of a metric over the samples of (input, labels) batches.

    Raises:
        CalibrationError: there is no batch, one without labels, or the metric is NaN or infinite.
    """
    total, count = 0.0, 0
    for each in batches:
        if not isinstance(each, (tuple, list)) or len(each) < 2:
            raise CalibrationError(f"validation= gave a {type(each).__name__} without labels; expected (input, labels)")
        outputs = run(inputs_of(each))
        total, count = total + metric(outputs[0], each[1]) * len(outputs[0]), count + len(outputs[0])
    if not count:
        raise CalibrationError("validation= has no batch: give a loader or a list of (input, labels)")
    if not math.isfinite(total):
        raise CalibrationError(f"the metric on validation= is {total}; expected a finite mean for every batch")
    return total / count
