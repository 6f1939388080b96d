"""Measured times of layers over a grid of their two widths, and what lies between."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.channels.latency.layers import LayerShape, TimedLayer
from lightning_prune.channels.latency.meter import Meter

GRID = 6  # steps of a width, at the most
_AT_ONCE = 12  # layers that are measured in turn


@dataclass(frozen=True)
class LayerTable:
    """The time of one layer at any two widths.

    Attributes:
        rows, columns: widths that were measured, ascending, float64.
        seconds: float64 [rows, columns].
    """

    rows: Tensor
    columns: Tensor
    seconds: Tensor

    def time(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Seconds at widths, float64 of one shape: bilinear in between, and as at the edge beyond."""
        (i, a), (j, b) = _place(self.rows, rows), _place(self.columns, columns)
        t, last_i, last_j = self.seconds, len(self.rows) - 1, len(self.columns) - 1
        k, m = (i + 1).clamp_max(last_i), (j + 1).clamp_max(last_j)
        low, high = t[i, j] * (1 - b) + t[i, m] * b, t[k, j] * (1 - b) + t[k, m] * b
        return low * (1 - a) + high * a


def _place(grid: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """(index of the point below, share of the way to the next) of each width."""
    if len(grid) == 1:
        return torch.zeros_like(at, dtype=torch.int64), torch.zeros_like(at)
    below = (torch.searchsorted(grid, at.contiguous(), right=True) - 1).clamp(0, len(grid) - 2)
    return below, ((at - grid[below]) / (grid[below + 1] - grid[below])).clamp(0, 1)


def grid_of(size: int, step: int) -> list[int]:
    """Widths to measure: the least, and sixths of the size, rounded up to a step, up to the size itself."""
    points = {min(size, step), size}
    points |= {min(size, math.ceil(size * i / GRID / step) * step) for i in range(1, GRID)}
    return sorted(points)


def measure(
    layers: Sequence[TimedLayer], meter: Meter, divisor: int, known: MutableMapping[str, float]
) -> list[LayerTable]:
    """The tables of some layers.

    Args:
        layers: what is measured; equal ones once.
        meter: the clock.
        divisor: widths are multiples of it, as those of the compact network will be.
        known: {layer as text: seconds} of before; what is measured is added.
    """
    grids = [_grids(layer, divisor) for layer in layers]
    wanted: dict[str, LayerShape] = {}
    for layer, (rows, columns) in zip(layers, grids, strict=True):
        wanted.update({str(s): s for r in rows for c in columns if str(s := layer.at(r, c)) not in known})
    shapes = list(wanted.values())
    for i in range(0, len(shapes), _AT_ONCE):
        part = shapes[i : i + _AT_ONCE]
        known.update({str(s): t for s, t in zip(part, meter.layers(part), strict=True)})
    return [_table(layer, rows, columns, known) for layer, (rows, columns) in zip(layers, grids, strict=True)]


def _grids(layer: TimedLayer, divisor: int) -> tuple[list[int], list[int]]:
    row, column = layer.steps()
    size = layer.shape.inputs // layer.shape.groups
    rows = grid_of(layer.shape.outputs, math.lcm(row, divisor)) if bool((layer.rows >= 0).any()) else []
    columns = grid_of(size, math.lcm(column, divisor)) if layer.columns is not None else []
    return rows or [layer.shape.outputs], columns or [size]


def _table(layer: TimedLayer, rows: list[int], columns: list[int], known: Mapping[str, float]) -> LayerTable:
    seconds = [[known[str(layer.at(r, c))] for c in columns] for r in rows]
    at_rows, at_columns = (torch.tensor(v, dtype=torch.float64) for v in (rows, columns))
    return LayerTable(at_rows, at_columns, torch.tensor(seconds, dtype=torch.float64))
