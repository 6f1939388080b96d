"""CPU latency of calls, measured in turn so that all see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.support.modes import split_input

Call = Callable[[], object]
Clock = Callable[[], float]
"""Seconds from some moment on: ``time.perf_counter``, or on a busy machine ``time.process_time``."""

PAIRS = 9  # of passes, after one that is not counted


@dataclass(frozen=True)
class Latency:
    """Median seconds of a forward pass in eval mode, before and after; ``ratio`` is that of neighbouring runs."""

    before: float
    after: float
    ratio: float
    batch: int
    threads: int
    runtime: str = "eager"

    def __str__(self) -> str:
        where = "" if self.runtime == "eager" else f" in {self.runtime}"
        return (
            f"CPU latency{where} at batch {self.batch}, {self.threads} threads: {1e3 * self.before:.1f} -> "
            f"{1e3 * self.after:.1f} ms ({self.ratio:.2f})"
        )


def eager_call(network: nn.Module, example_input: Any, batch: int) -> Call:
    """A call of a network on the CPU, which is put in eval mode. The first dim of the input becomes ``batch``."""
    args, kwargs = pytree.tree_map(lambda v: _resized(v, batch), split_input(example_input))
    network.eval()

    def call() -> object:
        with torch.inference_mode():
            return network(*args, **kwargs)

    return call


def compare_calls(
    before: Call, after: Call, batch: int, threads: int, runtime: str = "eager", clock: Clock = time.perf_counter,
    pairs: int = PAIRS,
) -> Latency:  # fmt: skip
    """Times two calls in turn, ``pairs`` times; the rest is what the result is to say of them."""
    first, second = interleaved([before, after], pairs, clock=clock)
    ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
    return Latency(statistics.median(first), statistics.median(second), ratio, batch, threads, runtime)


def interleaved(
    calls: Sequence[Call], rounds: int, warmup: int = 1, clock: Clock = time.perf_counter
) -> list[list[float]]:
    """Seconds of each call, ``rounds`` of them after a ``warmup`` that is not counted, in turn and to and fro.

    What else the machine does meanwhile so falls on all alike: compare neighbours, or medians.
    """
    times: list[list[float]] = [[] for _ in calls]
    for i in range(warmup + rounds):
        for which in range(len(calls)) if i % 2 else reversed(range(len(calls))):
            start = clock()
            calls[which]()
            if i >= warmup:
                times[which].append(clock() - start)
    return times


def _resized(value: Any, batch: int) -> Any:
    """A tensor like this one with another first dim, on the CPU; zeros, since speed does not depend on the values."""
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    return torch.zeros(batch, *value.shape[1:], dtype=value.dtype)
