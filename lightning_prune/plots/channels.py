"""The channel graph as a picture: layers as nodes, what goes together in one colour, what stays with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.plots.figure import FROZEN, new_figure

_REASONS = 12  # written under the picture
_WIDTH = 12  # layers side by side, before the picture goes on below
_COLOURS = [i for i in range(20) if i not in (14, 15)]  # of matplotlib's tab20, without its greys


@dataclass(frozen=True)
class Box:
    """A node of the picture.

    Attributes:
        name: of a layer's weight; of a place where paths join, its node in the traced graph.
        after: names of the nodes that lead here.
        joins: whether it is such a place, and no layer.
        channels, removable: of the layer's output.
        part: number of the set of layers whose channels go together; -1: none of its channels can go.
        reasons: why some or all channels stay.
    """

    name: str
    after: tuple[str, ...]
    joins: bool = False
    channels: int = 0
    removable: int = 0
    part: int = -1
    reasons: tuple[str, ...] = ()


def boxes_of(graph: ChannelGraph) -> list[Box]:
    """The nodes of the picture, in the order in which they are computed (eval mode)."""
    program = graph.program
    weights = {p: n for p, n in program.states.items() if n in program.parameters and _has_channels(graph, n)}
    parts = _parts(graph, list(weights.values()))
    found: dict[str, Box] = {}
    flows: dict[Node, tuple[str, ...]] = {}  # which boxes a value comes from, without another between
    for node in graph.program.graph.nodes:
        if node.op != "call_function":
            continue
        name = next((weights[n.name] for n in node.all_input_nodes if n.name in weights), None)
        before = tuple(dict.fromkeys(s for n in node.all_input_nodes for s in flows.get(n, ())))
        if name is not None and name not in found:
            found[name] = _layer(graph, name, before, parts[name])
            flows[node] = (name,)
        elif len(before) > 1:
            found[node.name] = Box(node.name, before, joins=True)
            flows[node] = (node.name,)
        else:
            flows[node] = before
    return list(found.values())


def channel_graph(graph: ChannelGraph) -> Any:
    """A picture of a channel graph.

    Layers are boxes from left to right in the order of computation, "removable/all" of their output channels in them.
    Layers of one colour share channels, which go together or stay together; small dots are places where paths join.
    Grey layers cannot lose an output channel, a dashed frame marks those that can lose only some; the number in
    brackets is their reason, written out below.

    Args:
        graph: from `ChannelGraph.trace`.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: the graph has no layer.
        ModuleNotFoundError: matplotlib is not installed.
    """
    boxes = boxes_of(graph)
    if all(box.joins for box in boxes):
        raise ValueError("this graph has no layer with channels to draw.")
    places = _folded(_places(boxes))
    columns = 1 + max(x for x, _ in places.values())
    rows = 1 + max(y for _, y in places.values())
    reasons: list[str] = list(dict.fromkeys(r for box in boxes for r in box.reasons))
    below = min(len(reasons), _REASONS)
    figure = new_figure(1.25 * columns + 0.6, 0.8 * rows + 0.18 * below + 0.9)
    from matplotlib import colormaps  # after the figure, whose error names the extra

    ax = figure.subplots()
    ax.set_axis_off()
    ax.set_xlim(-0.6, columns - 0.4)
    ax.set_ylim(rows - 0.4, -0.6)
    colours = colormaps["tab20"]
    for box in boxes:
        for name in box.after:
            _arrow(ax, places[name], places[box.name])
        if box.joins:
            ax.plot(*places[box.name], "o", markersize=4, color="0.4")
            continue
        colour: Any = FROZEN if box.part < 0 else colours(_COLOURS[box.part % len(_COLOURS)])
        frame = "dashed" if box.part >= 0 and box.removable < box.channels else "solid"
        numbers = "".join(f" [{reasons.index(r) + 1}]" for r in box.reasons[:2])
        text = ax.text(
            *places[box.name], f"{_short(box.name)}\n{box.removable}/{box.channels}{numbers}", ha="center", va="center",
            fontsize=6, bbox={"boxstyle": "round", "facecolor": colour, "edgecolor": "0.2", "linestyle": frame},
        )  # fmt: skip
        text.set_gid(box.name)
    lines = [f"[{i + 1}] {reason}" for i, reason in enumerate(reasons[:_REASONS])]
    lines += [f"... and {len(reasons) - _REASONS} more reasons"] if len(reasons) > _REASONS else []
    if lines:
        ax.set_title("\n".join(lines), fontsize=6, loc="left", y=-0.02, va="top")
    figure.suptitle(str(graph).splitlines()[0], fontsize=8)
    return figure


def _has_channels(graph: ChannelGraph, name: str) -> bool:
    return len(graph.shapes.get(name, ())) >= 2 and 0 in graph.axes.get(name, {})


def _layer(graph: ChannelGraph, name: str, before: tuple[str, ...], part: int) -> Box:
    ids = graph.axes[name][0]
    frozen = sorted({r for i in ids[ids < 0].unique().tolist() for r in graph.frozen_reasons[-1 - i]})
    free = int((ids >= 0).sum())
    return Box(name, before, False, len(ids), free, part, tuple(frozen))


def _parts(graph: ChannelGraph, names: list[str]) -> dict[str, int]:
    """Numbers of the sets of layers that share removable groups, in order of appearance; -1 where none is removable."""
    owner: dict[int, str] = {}  # the first layer that has a group
    leader = {name: name for name in names}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for name in names:
        for group in _groups(graph.axes[name][0]):
            leader[find(name)] = find(owner.setdefault(group, name))
    numbers: dict[str, int] = {}
    free = {name: any(True for _ in _groups(graph.axes[name][0])) for name in names}
    return {name: numbers.setdefault(find(name), len(numbers)) if free[name] else -1 for name in names}


def _groups(ids: Tensor) -> Iterator[int]:
    yield from ids[ids >= 0].unique().tolist()


def _places(boxes: list[Box]) -> dict[str, tuple[float, float]]:
    """A place for each box: x its depth, y near the mean of those before it, no two in one place."""
    places: dict[str, tuple[float, float]] = {}
    taken: set[tuple[float, float]] = set()
    for box in boxes:
        before = [places[name] for name in box.after if name in places]
        x = 1 + max((p[0] for p in before), default=-1.0)
        y = float(round(sum(p[1] for p in before) / len(before))) if before else 0.0
        while (x, y) in taken:
            y += 1
        taken.add((x, y))
        places[box.name] = (x, y)
    return places


def _folded(places: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The places of a long network in several lines, one below the other."""
    height = 1.4 + max(y for _, y in places.values())
    return {name: (x % _WIDTH, y + height * (x // _WIDTH)) for name, (x, y) in places.items()}


def _arrow(ax: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    passes = start[1] == end[1] and end[0] - start[0] > 1  # over what stands between: in a bow
    style = {
        "arrowstyle": "-|>", "color": "0.6", "linewidth": 0.8, "shrinkA": 14, "shrinkB": 14,
        "connectionstyle": f"arc3,rad={-0.25 if passes else 0}",
    }  # fmt: skip
    ax.annotate("", xy=end, xytext=start, arrowprops=style, zorder=0)


def _short(name: str) -> str:
    name = name.removesuffix(".weight")
    return name if len(name) <= 18 else f"…{name[-17:]}"
