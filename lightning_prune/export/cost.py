"""`cost_report`: what a network costs, alone or beside another one."""

from __future__ import annotations

import statistics
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.errors import ExportError, PrunedFileError
from lightning_prune.export.network import clocked, dense_form, resized, runner, strange_values, take_network
from lightning_prune.export.onnx_file import as_arrays, export_onnx
from lightning_prune.export.runtimes import OnnxRuntime
from lightning_prune.io import save_pruned
from lightning_prune.support.latency import interleaved
from lightning_prune.support.macs import count_macs
from lightning_prune.support.table import Shown, Table, mib, ms


@dataclass(frozen=True)
class NetworkCost:
    """What one network costs.

    Attributes:
        parameters, nonzeros: elements of all parameters, and those that are not zero.
        macs: multiply-accumulates for one sample at the example's size, as `support.macs` counts them.
        dense_bytes: the tensors of its state dict, as they are.
        zip_bytes: the same, deflated.
        file_bytes: the file that `save_pruned` writes; None if the network cannot be saved so.
        eager_seconds: median time of a call in PyTorch, on the CPU in float32; None if nothing was timed.
        onnxruntime_seconds: the same in onnxruntime; None if it is not installed, or the network cannot be exported.
    """

    parameters: int
    nonzeros: int
    macs: int
    dense_bytes: int
    zip_bytes: int
    file_bytes: int | None
    eager_seconds: float | None = None
    onnxruntime_seconds: float | None = None


@dataclass(frozen=True)
class CostReport(Shown):
    """What a network costs, and the one it is compared with. ``print`` shows a table; notebooks show it as HTML."""

    model: NetworkCost
    baseline: NetworkCost | None
    batch: int
    threads: int
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """A row a cost; with a baseline, columns for it and for the share of it that is left."""
        rows: list[tuple[str, Callable[[Any], str], Callable[[NetworkCost], float | None]]] = [
            ("parameters", _count, lambda c: c.parameters),
            ("non-zero", _count, lambda c: c.nonzeros),
            ("MACs", _count, lambda c: c.macs),
            ("dense file", mib, lambda c: c.dense_bytes),
            ("zipped", mib, lambda c: c.zip_bytes),
            ("pruned file", mib, lambda c: c.file_bytes),
            ("PyTorch", ms, lambda c: c.eager_seconds),
            ("onnxruntime", ms, lambda c: c.onnxruntime_seconds),
        ]
        cells = [(name, *self._cells(said, value)) for name, said, value in rows]
        head = ("", "network") if self.baseline is None else ("", "baseline", "network", "left")
        clock = f"latency: medians of calls in turn, float32 on the CPU, batch {self.batch}, threads {self.threads}"
        return Table(head, cells, below=[clock, *self.notes])

    def _cells(self, said: Callable[[Any], str], value: Callable[[NetworkCost], float | None]) -> tuple[str, ...]:
        now = value(self.model)
        if self.baseline is None:
            return (said(now),)
        before = value(self.baseline)
        return said(before), said(now), f"{now / before:.1%}" if now is not None and before else "-"


def cost_report(
    model: nn.Module | str | Path,
    example_input: Any,
    baseline: nn.Module | str | Path | None = None,
    *,
    batch: int = 1,
    threads: int = 1,
    rounds: int = 10,
) -> CostReport:
    """Measures parameters, zeros, MACs, file sizes and CPU latency of a network, and of another one beside it.

    Args:
        model: a network, a LightningModule that holds it, or a file that `load_pruned` reads. It is not changed.
        example_input: the one argument, a tuple of positional ones, or a dict of keyword arguments; batch first.
        baseline: the network to compare with; None: the dense one that the model's pruning plan leads back to, if any.
            Random numbers stand in that one for what was removed.
        batch: samples in a call that is timed.
        threads: of PyTorch and onnxruntime while they are timed.
        rounds: timed calls of each, in turn; 0 times nothing.

    Raises:
        ExportError: the weights are still being pruned.
        ValueError: a number is out of its range.
    """
    for name, count, least in (("batch", batch, 1), ("threads", threads, 1), ("rounds", rounds, 0)):
        if count < least:
            raise ValueError(f"{name}={count!r} must be a whole number from {least} on.")
    network, plans = take_network(model)
    given = network if isinstance(model, (str, Path)) else model  # a LightningModule knows more of what it holds
    other = dense_form(network, plans) if baseline is None else take_network(baseline)[0]
    networks = [network] if other is None else [network, other]
    sources = [given, baseline if isinstance(baseline, nn.Module) else other]
    notes: dict[str, None] = {}
    costs = [_static(each, source, example_input) for each, source in zip(networks, sources, strict=False)]
    if rounds:
        arguments = resized(example_input, batch)
        with TemporaryDirectory() as folder, clocked(threads):
            calls: dict[tuple[int, str], Callable[[], object]] = {}
            for i, each in enumerate(networks):
                calls[i, "eager_seconds"] = partial(runner(each), arguments)
                try:
                    export_onnx(each, example_input, path := Path(folder) / f"{i}.onnx")
                    session = OnnxRuntime().load(path, "fp32", threads, batch)
                    calls[i, "onnxruntime_seconds"] = partial(session, as_arrays(arguments))
                except (ModuleNotFoundError, ExportError) as error:
                    notes[f"no time in onnxruntime: {error}"] = None
            times = interleaved(list(calls.values()), rounds, warmup=2)
        for (i, name), seconds in zip(calls, times, strict=True):
            costs[i][name] = statistics.median(seconds)
        notes.update(dict.fromkeys(strange_values(network, arguments)))
    first, *rest = (NetworkCost(**cost) for cost in costs)
    if first.nonzeros < 0.9 * first.parameters:
        notes["zeros inside tensors make packed files smaller, and PyTorch and onnxruntime no faster"] = None
    return CostReport(first, rest[0] if rest else None, batch, threads, tuple(notes))


def _static(network: nn.Module, source: Any, example_input: Any) -> dict[str, Any]:
    """The costs that take no clock. source: what knows best how the network was built, for its file."""
    parameters = list(network.parameters())
    plain = list(_bytes(network.state_dict()))
    squeeze = zlib.compressobj()
    return {
        "parameters": sum(p.numel() for p in parameters),
        "nonzeros": sum(int(torch.count_nonzero(p)) for p in parameters),
        "macs": count_macs(network, resized(example_input, 1)),
        "dense_bytes": sum(map(len, plain)),
        "zip_bytes": sum(len(squeeze.compress(part)) for part in plain) + len(squeeze.flush()),
        "file_bytes": _file_bytes(source),
    }


def _bytes(state: Mapping[str, Any]) -> Iterator[bytes]:
    """The bytes of each tensor, shared ones once."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for tensor in state.values():
        if isinstance(tensor, Tensor) and (place := (tensor.data_ptr(), tuple(tensor.shape))) not in seen:
            seen.add(place)
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _file_bytes(model: nn.Module) -> int | None:
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether the file names a timm model is not the question
        try:
            return save_pruned(model, Path(folder) / "pruned.safetensors").stat().st_size
        except PrunedFileError:
            return None


def _count(value: int) -> str:
    return f"{value:,}"
