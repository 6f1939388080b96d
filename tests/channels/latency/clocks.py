"""Clocks that count instead of measuring, so that what is right is known."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lightning_prune.channels.latency.layers import LayerShape
from lightning_prune.support.latency import Call
from lightning_prune.support.macs import count_macs
from lightning_prune.support.modes import split_input
from tests.callbacks.methods import size


def macs(shape: LayerShape) -> float:
    """A layer's multiply-accumulates: proportional to each of its widths."""
    return float(shape.macs())


class Counter:
    """A meter whose layers take what a function says, and whose networks take their MACs or parameters.

    Attributes:
        asked: the layers that were measured, in order.
        batches: of the networks that were loaded.
    """

    runtime, version, threads = "counted", "1", 1

    def __init__(
        self, layer: Callable[[LayerShape], float] = macs, *, rest: float = 0.0, noise: float = 0.0, by: str = "macs"
    ) -> None:
        self.layer, self.rest, self.noise, self.by = layer, rest, noise, by
        self.asked: list[LayerShape] = []
        self.batches: list[int] = []
        self.now = 0.0
        self._random = random.Random(0)

    def clock(self) -> float:
        return self.now

    def layers(self, shapes: Sequence[LayerShape]) -> list[float]:
        self.asked += shapes
        return [self.layer(s) * (1 + self.noise * self._random.random()) for s in shapes]

    def load(self, network: nn.Module, example_input: Any, batch: int) -> Call:
        self.batches.append(batch)
        x = split_input(example_input).args[0]
        cost = size(network) if self.by == "parameters" else count_macs(network, torch.zeros(1, *x.shape[1:]))
        took = self.rest + cost

        def call() -> None:
            self.now += took

        return call
