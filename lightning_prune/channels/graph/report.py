"""Readable tables of a channel graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_prune.channels.graph.graph import ChannelGraph


def graph_report(graph: ChannelGraph, lines: int = 60) -> str:
    """One row for each layer with a two-dimensional (or larger) weight: its channels, and why some stay.

    Args:
        lines: rows to print; the rest is counted in the last line.
    """
    total, frozen = graph.norm_channels()
    rows = []
    for name, dims in graph.axes.items():
        ids = dims.get(0)
        if ids is None or len(graph.shapes[name]) < 2:
            continue
        free = ids[ids >= 0]
        reasons = sorted({r for i in ids[ids < 0].unique().tolist() for r in graph.frozen_reasons[-1 - i]})
        why = reasons[0] + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "") if reasons else ""
        rows.append((name, str(len(ids)), str(len(free)), str(len(free.unique())), why))
    head = ("tensor", "channels", "removable", "classes", "why the others stay")
    shown = rows[:lines]
    widths = [max(len(row[i]) for row in [head, *shown]) for i in range(4)]
    table = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]]).rstrip()
        for row in [head, *shown]
    ]
    rest = [f"... and {len(rows) - lines} more layers"] if len(rows) > lines else []
    notes = [f"approximation: {text}" for text in graph.approximations]
    summary = (
        f"ChannelGraph: {graph.size} removable classes; "
        f"{frozen} of {total} BatchNorm channels are frozen; groups={graph.options.groups!r}, "
        f"attention={graph.options.attention!r}"
    )
    return "\n".join([summary, *notes, *table, *rest])


def frozen_summary(graph: ChannelGraph) -> dict[str, int]:
    """{reason: BatchNorm channels that stay for it}, most frequent first. A channel may have several reasons."""
    found: dict[str, int] = {}
    for path in graph.norms:
        ids = graph.scale_ids(path)
        for identity in [] if ids is None else ids[ids < 0].tolist():
            for reason in graph.frozen_reasons[-1 - identity]:
                found[reason] = found.get(reason, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))
