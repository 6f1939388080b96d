"""The widths that layers of channels may have, and what the table says that each takes and is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.channels.latency.layers import TimedLayer
from lightning_prune.channels.latency.table import LayerTable
from lightning_prune.channels.select.selector import Selector

_MOST = 64  # widths of a layer to choose from


@dataclass(frozen=True)
class _Side:
    """One width of a timed layer: its fixed channels, and {layer of channels: channels of its best n groups}."""

    fixed: int
    counts: dict[int, Tensor]

    def at(self, kept: Sequence[int]) -> Tensor:
        """Channels, float64 [1], when each layer of channels keeps so many groups."""
        total = self.fixed + sum(float(count[kept[i]]) for i, count in self.counts.items())
        return torch.tensor([total], dtype=torch.float64)

    def over(self, kept: Sequence[int], layer: int, options: Tensor) -> Tensor:
        """The same for some options of one layer, float64 [options]."""
        now = self.at(kept)
        if layer not in self.counts:
            return now.expand(len(options))
        count = self.counts[layer]
        return now - count[kept[layer]] + count[options]


@dataclass(frozen=True)
class Widths:
    """A width is a number of groups that a layer of channels keeps, the best of them.

    Attributes:
        groups: of each layer of channels the groups, the best first, int64.
        choices: of each layer the numbers that it may keep, ascending, int64.
        sides: (rows, columns) of each timed layer.
        tables: of each timed layer.
        layer: layer of each group, -1 for those that stay.
    """

    groups: list[Tensor]
    choices: list[Tensor]
    sides: list[tuple[_Side, _Side]]
    tables: Sequence[LayerTable]
    layer: Tensor

    def full(self) -> list[int]:
        """Every group of every layer."""
        return [int(c[-1]) for c in self.choices]

    def least(self) -> list[int]:
        """The fewest that may stay."""
        return [int(c[0]) for c in self.choices]

    def options(self, picked: Sequence[int]) -> list[int]:
        """The numbers of groups by their indices among the choices."""
        return [int(c[i]) for c, i in zip(self.choices, picked, strict=True)]

    def places(self, kept: Sequence[int]) -> list[int]:
        """The opposite of `options`."""
        return [int(torch.searchsorted(c, k)) for c, k in zip(self.choices, kept, strict=True)]

    def keep(self, kept: Sequence[int]) -> Tensor:
        """Bool [groups]."""
        out = torch.ones(len(self.layer), dtype=torch.bool)
        for groups, n in zip(self.groups, kept, strict=True):
            out[groups[n:]] = False
        return out

    def worth(self, worth: Tensor) -> list[Tensor]:
        """What each choice of each layer keeps of the worth of groups, float64 [groups]."""
        return [_sums(worth[groups])[choices] for groups, choices in zip(self.groups, self.choices, strict=True)]

    def seconds(self, kept: Sequence[int]) -> float:
        """What the tables say of all layers together."""
        sides = zip(self.tables, self.sides, strict=True)
        return sum(float(table.time(rows.at(kept), columns.at(kept))) for table, (rows, columns) in sides)

    def prices(self, kept: Sequence[int]) -> list[Tensor]:
        """Seconds of each choice of each layer, float64 [choices]: of what it touches, all others as they are."""
        out = [torch.zeros(len(c), dtype=torch.float64) for c in self.choices]
        for table, (rows, columns) in zip(self.tables, self.sides, strict=True):
            for i in rows.counts.keys() | columns.counts.keys():
                options = self.choices[i]
                out[i] = out[i] + table.time(rows.over(kept, i, options), columns.over(kept, i, options))
        return out


def widths_of(selector: Selector, layers: Sequence[TimedLayer], tables: Sequence[LayerTable], order: Tensor) -> Widths:
    """The widths within a selector's floors and divisor.

    order: what groups go by, the lowest first, float64 [groups]; +inf for those that stay.
    """
    units = selector.units
    numbers = torch.arange(units.size)
    groups = []
    for i in range(len(units.layers)):
        mine = numbers[units.layer == i]
        groups.append(mine[order[mine].argsort(descending=True, stable=True)])
    held = [int((order[mine] == math.inf).sum()) for mine in groups]
    both = [_ids(layer) for layer in layers]
    sides = [(_side(rows, groups, units.layer), _side(columns, groups, units.layer)) for rows, columns in both]
    own = _own(selector, groups)
    choices = [_choices(selector, len(g), held[i], own.get(i, (0, 1.0))) for i, g in enumerate(groups)]
    return Widths(groups, choices, sides, tables, units.layer)


def _ids(layer: TimedLayer) -> tuple[Tensor, Tensor]:
    fixed = torch.full((layer.shape.inputs // layer.shape.groups,), -1, dtype=torch.int64)
    return layer.rows, fixed if layer.columns is None else layer.columns


def _side(ids: Tensor, groups: Sequence[Tensor], layer: Tensor) -> _Side:
    """Splits a vector of group ids by layers of channels."""
    free = ids[ids >= 0]
    number = torch.bincount(free, minlength=len(layer)).double()
    inside = [i for i in layer[free].unique().tolist() if i >= 0]
    fixed = len(ids) - int(sum(float(number[groups[i]].sum()) for i in inside))
    return _Side(fixed, {i: _sums(number[groups[i]]) for i in inside})


def _sums(values: Tensor) -> Tensor:
    """What the first n add up to, n from 0 on."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _own(selector: Selector, groups: Sequence[Tensor]) -> dict[int, tuple[int, float]]:
    """{layer: (channels that stay, channels of each group) of the widest tensor with no other layer's in dim 0}."""
    units, found, widest = selector.units, dict[int, tuple[int, float]](), dict[int, int]()
    for _, dim, ids in units.graph.each():
        layer = units.layer[ids[ids >= 0]] if dim == 0 else ids[:0]
        inside = [i for i in layer.unique().tolist() if i >= 0]
        if len(inside) == 1 and len(ids) > widest.get(inside[0], 0):
            number = int((layer == inside[0]).sum())
            widest[inside[0]] = len(ids)
            found[inside[0]] = len(ids) - number, number / len(groups[inside[0]])
    return found


def _choices(selector: Selector, size: int, held: int, channels: tuple[int, float]) -> Tensor:
    """Numbers of groups that leave a multiple of the divisor, from the floor on, and all; at most some, evenly.

    Args:
        size: groups of the layer.
        held: of which so many stay.
        channels: (that stay, of each group).
    """
    fixed, each = channels
    width = fixed + each * size
    least = selector.min_channels
    floor = max(1, least if isinstance(least, int) else math.ceil(least * width))
    numbers = torch.arange(0, size + 1)
    left = fixed + each * numbers
    fine = (left >= min(floor, width)) & (numbers >= held) & (left % selector.divisor == 0)
    fine[size] = True
    allowed = numbers[fine]
    if len(allowed) > _MOST:
        allowed = allowed[torch.linspace(0, len(allowed) - 1, _MOST).round().long()]
    return allowed
