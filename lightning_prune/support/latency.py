"""CPU latency of two models, measured in turn so that both see the same machine."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.support.modes import mode, split_input

_ROUNDS = 9  # pairs of passes, after one that is not counted


@dataclass(frozen=True)
class Latency:
    """Median seconds of a forward pass in eval mode, before and after; ``ratio`` is that of neighbouring runs."""

    before: float
    after: float
    ratio: float
    batch: int
    threads: int

    def __str__(self) -> str:
        return (
            f"CPU latency at batch {self.batch}, {self.threads} threads: {1e3 * self.before:.1f} -> "
            f"{1e3 * self.after:.1f} ms ({self.ratio:.2f})"
        )


def compare_latency(before: nn.Module, after: nn.Module, example_input: Any, batch: int) -> Latency:
    """Times two models that take the same input on the CPU in turn; what is on another device is copied.

    The first dim of ``example_input`` becomes ``batch``.
    """
    args, kwargs = pytree.tree_map(lambda v: _resized(v, batch), split_input(example_input))
    there = [all(p.device.type == "cpu" for p in m.parameters()) for m in (before, after)]
    models = [m if on_cpu else copy.deepcopy(m).cpu() for m, on_cpu in zip((before, after), there, strict=True)]
    with torch.inference_mode(), mode(models[0], False), mode(models[1], False):
        times = interleaved([partial(model, *args, **kwargs) for model in models], _ROUNDS)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    before_s, after_s = (statistics.median(t) for t in times)
    return Latency(before_s, after_s, ratio, batch, torch.get_num_threads())


def interleaved(calls: Sequence[Callable[[], object]], rounds: int, warmup: int = 1) -> list[list[float]]:
    """Seconds of each call, ``rounds`` of them after a ``warmup`` that is not counted, in turn and to and fro.

    What else the machine does meanwhile so falls on all alike: compare neighbours, or medians.
    """
    times: list[list[float]] = [[] for _ in calls]
    for i in range(warmup + rounds):
        for which in range(len(calls)) if i % 2 else reversed(range(len(calls))):
            start = time.perf_counter()
            calls[which]()
            if i >= warmup:
                times[which].append(time.perf_counter() - start)
    return times


def _resized(value: Any, batch: int) -> Any:
    """A tensor like this one with another first dim, on the CPU; zeros, since speed does not depend on the values."""
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    return torch.zeros(batch, *value.shape[1:], dtype=value.dtype)
