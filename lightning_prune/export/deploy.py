"""`deploy`: export, quantize, measure, choose, write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from lightning_prune.errors import CalibrationError, ExportError
from lightning_prune.export.advice import advice, grouped_convolutions
from lightning_prune.export.measure import (
    Metric,
    accuracy_of,
    network_accuracy,
    run_candidate,
    timed,
    top1,
    write_files,
)
from lightning_prune.export.network import (
    clocked,
    dense_form,
    resized,
    strange_values,
    take_network,
    tensors_of,
)
from lightning_prune.export.onnx_file import as_arrays, write_onnx
from lightning_prune.export.quantize import saturates
from lightning_prune.export.result import Candidate, Deployed, choose
from lightning_prune.export.runtimes import PRECISIONS, RUNTIMES, find_runtimes, need
from lightning_prune.io.describe import sparsity, versions
from lightning_prune.support.modes import Arguments


def deploy(
    model: nn.Module | str | Path,
    example_input: Any,
    out: str | Path,
    *,
    calibration: Iterable[Any] | None = None,
    validation: Iterable[Any] | None = None,
    max_drop: float = 0.01,
    baseline: nn.Module | str | Path | None = None,
    batch: int = 1,
    threads: int = 1,
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    metric: Metric | None = None,
    rounds: int = 30,
) -> Deployed:
    """Writes the fastest form of a network that loses no more than a stated accuracy, as one ONNX file.

    The file takes any batch size and needs nothing of PyTorch. Its metadata, under the key "lightning_prune", says in
    JSON what it is: runtime, precision, inputs, what timm expects of images, measurements, versions.

    Args:
        model: the network, a LightningModule that holds it (found as `save_pruned` finds it), or a file that
            `load_pruned` reads. It is not changed.
        example_input: the one argument, a tuple of positional ones, or a dict of keyword arguments; batch first.
        out: the ONNX file to write; one that exists is replaced in one step.
        calibration: batches as a loader gives them, (input, labels) or inputs alone; int8 needs them. They are read
            once for each int8 file. A few hundred samples do.
        validation: (input, labels) batches on which accuracy is measured. Without them only float32 is written, unless
            ``precisions`` names another: nobody knows then what it loses.
        max_drop: what the written form may lose of the network's own accuracy, as an absolute share.
        baseline: the dense network to compare with; by default the one that the network's pruning plan leads back to,
            with random numbers for what was removed. It is timed in every form that the pruned one is.
        batch: samples in a call that is timed.
        threads: threads of the runtimes.
        runtimes: out of "onnxruntime" and "openvino"; None takes those that are installed.
        precisions: out of `PRECISIONS`, see `Candidate`; None: "fp32", and the others where their accuracy can be
            measured.
        metric: (output, labels) of a batch -> mean over its samples, the higher the better; None: top-1 accuracy.
        rounds: timed calls of each form, in turn.

    Raises:
        ModuleNotFoundError: an extra is not installed; the message names it.
        ExportError: the network cannot be exported, the ONNX file does not compute the same, or every candidate loses
            too much. Nothing is written.
        CalibrationError: int8 is asked for and there are no calibration batches, or there is no validation batch.
        ValueError: an argument is not one of the above.
    """
    need("onnx", "onnxscript", "onnxruntime")
    _check_numbers(max_drop=max_drop, batch=batch, threads=threads, rounds=rounds)
    path, used = Path(out), find_runtimes(runtimes)
    if path.is_dir():
        raise ValueError(f"out={str(out)!r} is a folder: give the path of the ONNX file to write.")
    network, plans = take_network(model)
    wanted = _precisions(precisions, calibration is not None, validation is not None, grouped_convolutions(network)[0])
    calibration, validation = _again(calibration), _again(validation)
    dense = dense_form(network, plans) if baseline is None else take_network(baseline)[0]
    networks = {"pruned": network} | ({"dense": dense} if dense is not None else {})
    arguments, accuracy = resized(example_input, batch), None
    if validation is not None:
        measure = partial(accuracy_of, batches=validation, metric=metric or top1)
        accuracy = network_accuracy(network, validation, metric)
    with TemporaryDirectory() as folder, clocked(threads):
        files = write_files(networks, example_input, Path(folder), calibration, wanted)
        found, failed = timed(files, used, as_arrays(arguments), threads, rounds)
        if accuracy is not None:
            scored = [c for c in found if c.network == "pruned" or baseline is not None]  # a dense form has no accuracy
            scores = {c: measure(run_candidate(files, c, threads)) for c in scored}
            found = [replace(c, accuracy=scores.get(c)) for c in found]
        candidates, others = (tuple(c for c in found if c.network == name) for name in ("pruned", "dense"))
        chosen = choose(candidates, accuracy, max_drop, precisions or ())
        if chosen is None:
            raise ExportError(_all_lose(candidates, accuracy, max_drop))
        zeros = float(sparsity(network, plans)["sparsity"] or 0.0)
        notes = [
            *advice(candidates, others, network, zeros, accuracy, max_drop),
            *failed,
            *_of_choices(precisions, wanted, runtimes, dense is not None),
            *strange_values(network, arguments),
        ]
        result = Deployed(path, chosen, candidates, others, accuracy, max_drop, batch, threads, tuple(notes))
        write_onnx(files["pruned", chosen.precision], path, _description(result, network, arguments))
    return result


def _precisions(asked: Sequence[str] | None, calibrated: bool, validated: bool, grouped: int) -> tuple[str, ...]:
    """What to try; by default int8 in parts only where there are grouped convolutions to leave out."""
    if asked is None:
        left_out = {*(() if validated else PRECISIONS[1:]), *(() if calibrated else ("int8", "mixed"))}
        return tuple(p for p in PRECISIONS if p not in left_out and (p != "mixed" or grouped))
    if isinstance(asked, str) or not asked or not set(asked) <= set(PRECISIONS):
        raise ValueError(f"precisions={asked!r} must be a list out of {list(PRECISIONS)}, or None.")
    if not calibrated and {"int8", "mixed"} & set(asked):
        raise CalibrationError(f"precisions={list(asked)!r} needs calibration= batches, a few hundred samples in all")
    return tuple(p for p in PRECISIONS if p in asked)


def _check_numbers(*, max_drop: float, **counts: int) -> None:
    if not (math.isfinite(max_drop) and 0 <= max_drop <= 1):
        raise ValueError(f"max_drop={max_drop!r} must be an absolute share of accuracy, from 0 to 1.")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count!r} must be a whole number from 1 on.")


def _again(batches: Iterable[Any] | None) -> Iterable[Any] | None:
    """Batches that can be read more than once: what is an iterator is put in a list."""
    return list(batches) if isinstance(batches, Iterator) else batches


def _all_lose(candidates: Sequence[Candidate], accuracy: float | None, max_drop: float) -> str:
    if accuracy is None:
        tried = ", ".join(map(str, candidates))
        return f"nobody knows what the candidates lose ({tried}): give validation=, or add 'fp32' to precisions"
    listed = ", ".join(f"{c} {c.accuracy:.4f}" for c in candidates)
    return (
        f"every candidate loses more than max_drop={max_drop:g} of the accuracy {accuracy:.4f}: {listed}. "
        "Allow more, calibrate on more batches, or add 'fp32' to precisions"
    )


def _of_choices(
    asked: Sequence[str] | None, wanted: Sequence[str], runtimes: Sequence[str] | None, compared: bool
) -> list[str]:
    """What was not tried, and what would make it so."""
    found = []
    if asked is None and "int8" not in wanted:
        found.append("int8 was not tried: it takes calibration= and validation= batches.")
    if "int8" in wanted or "mixed" in wanted:
        weights = "7 bits of the weights, as this CPU has no VNNI" if saturates() else "8-bit weights, as for VNNI"
        found.append(f"int8 is static, with {weights}; dynamic quantization is several times slower for convolutions.")
    if runtimes is None and len(find_runtimes(None)) < len(RUNTIMES):
        found.append('openvino was not tried: pip install "lightning-prune[openvino]".')
    if not compared:
        found.append("There is no dense network to compare with: give baseline=.")
    return found


def _description(result: Deployed, network: nn.Module, arguments: Arguments) -> dict[str, Any]:
    """What the file says of itself."""
    import onnxruntime

    c = result.chosen
    config = getattr(network, "pretrained_cfg", None) or {}
    images = {key: config[key] for key in ("mean", "std", "interpolation", "crop_pct") if config.get(key) is not None}
    return {
        "format": "lightning_prune deployed 1",
        "network": str(config.get("architecture") or type(network).__name__),
        "runtime": c.runtime,
        "precision": c.precision,
        "inputs": [{"shape": [None, *t.shape[1:]], "dtype": str(t.dtype)[6:]} for t in tensors_of(arguments)],
        "settings": RUNTIMES[c.runtime].settings(c.precision),
        "timm_images": images,
        "accuracy": {"written": c.accuracy, "network": result.accuracy},
        "latency": {"seconds": c.seconds, "batch": result.batch, "threads": result.threads},
        "speedup": {"dense fp32, same runtime": result.speedup, "fastest dense": result.speedup_of_fastest},
        "versions": {**versions(), "onnxruntime": onnxruntime.__version__},
    }
