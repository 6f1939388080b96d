"""`cost_report`: what a network costs, alone or beside another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(frozen=True)
class NetworkCost:
    """What one network costs.

    Attributes:
        parameters, nonzeros: elements of all parameters, and those that are not zero.
        macs: multiply-accumulates for one sample at the example's size.
        dense_bytes: the tensors as a plain dense file.
        file_bytes: the file that `save_pruned` writes; None if the network cannot be saved so.
        zip_bytes: the plain dense file, zipped.
        eager_seconds: median time of a call in PyTorch, on the CPU.
        onnxruntime_seconds: the same in onnxruntime; None if it is not installed, or the network cannot be exported.
    """

    parameters: int
    nonzeros: int
    macs: int
    dense_bytes: int
    file_bytes: int | None
    zip_bytes: int
    eager_seconds: float
    onnxruntime_seconds: float | None


@dataclass(frozen=True)
class CostReport:
    """What a network costs, and the one it is compared with. ``print`` shows a table; notebooks show it as HTML."""

    model: NetworkCost
    baseline: NetworkCost | None
    batch: int
    threads: int
    notes: tuple[str, ...] = ()


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
        model: a network, a LightningModule that holds it, or a file that `load_pruned` reads.
        example_input: the one argument, a tuple of positional ones, or a dict of keyword arguments; batch first.
        baseline: the network to compare with; None: the dense one that the model's pruning plan leads back to, if any.
        batch: samples in a call that is timed.
        threads: of PyTorch and onnxruntime while they are timed.
        rounds: timed calls of each, in turn.
    """
    raise NotImplementedError
