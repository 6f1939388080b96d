"""What takes the time: of layers by themselves, and of a compact network beside the dense one."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune.channels.latency.layers import LayerShape
from lightning_prune.support.latency import PAIRS, Call, Clock, Latency, compare_calls, eager_call, interleaved

_ROUNDS, _WARMUP = 7, 2
_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Meter(Protocol):
    """A runtime with a clock.

    Attributes:
        runtime, version: its name and its version.
        threads: that it runs with.
        clock: seconds from some moment on.
    """

    runtime: str
    version: str
    clock: Clock

    @property
    def threads(self) -> int: ...

    def layers(self, shapes: Sequence[LayerShape]) -> list[float]:
        """Seconds of a call of each."""
        ...

    def load(self, network: nn.Module, example_input: Any, batch: int) -> Call:
        """A call of a network on the CPU at a batch size, in eval mode. The network is the meter's from now on."""
        ...


class EagerMeter:
    """PyTorch on the CPU, with as many threads as it has now."""

    runtime = "eager"
    version = str(torch.__version__)

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock = clock

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def layers(self, shapes: Sequence[LayerShape]) -> list[float]:
        with torch.inference_mode():
            return least_seconds([_call(shape) for shape in shapes], self.clock)

    def load(self, network: nn.Module, example_input: Any, batch: int) -> Call:
        return eager_call(network, example_input, batch)


def compare(meter: Meter, before: nn.Module, after: nn.Module, example_input: Any, batch: int) -> Latency:
    """Times copies of two networks that take the same input, in turn, in a meter's runtime."""
    first, second = (meter.load(copy.deepcopy(network).cpu(), example_input, batch) for network in (before, after))
    return compare_loaded(meter, first, second, batch)


def compare_loaded(meter: Meter, before: Call, after: Call, batch: int, pairs: int = PAIRS) -> Latency:
    """The same of calls that the meter has loaded."""
    return compare_calls(before, after, batch, meter.threads, meter.runtime, meter.clock, pairs)


def least_seconds(calls: Sequence[Call], clock: Clock) -> list[float]:
    """The least time of some rounds in turn of each call: of what else the machine does, that holds least."""
    return [min(times) for times in interleaved(calls, _ROUNDS, _WARMUP, clock)]


def _call(shape: LayerShape) -> Call:
    x, weight = torch.zeros(shape.input_shape), torch.zeros(shape.weight_shape)
    if not shape.kernel:
        return partial(F.linear, x, weight)
    conv = _CONVS[len(shape.kernel)]
    return partial(conv, x, weight, None, shape.stride, shape.padding, shape.dilation, shape.groups)
