"""A readable table of a channel graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

_HEAD = ("tensor", "channels", "removable", "groups", "why the others stay")


def layer_table(
    axes: Mapping[str, Mapping[int, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    frozen_reasons: Sequence[tuple[str, ...]],
    lines: int = 60,
) -> list[str]:
    """One row for each layer with a two-dimensional (or larger) weight: its channels, and why some stay.

    Args:
        axes, shapes, frozen_reasons: see `ChannelGraph`.
        lines: rows to print; the rest is counted in the last line.
    """
    rows = []
    for name, dims in axes.items():
        ids = dims.get(0)
        if ids is None or len(shapes[name]) < 2:
            continue
        free = ids[ids >= 0]
        reasons = sorted({r for i in ids[ids < 0].unique().tolist() for r in frozen_reasons[-1 - i]})
        why = reasons[0] + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "") if reasons else ""
        rows.append((name, str(len(ids)), str(len(free)), str(len(free.unique())), why))
    shown = [_HEAD, *rows[:lines]]
    widths = [max(len(row[i]) for row in shown) for i in range(4)]
    table = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]]).rstrip()
        for row in shown
    ]
    return table + ([f"... and {len(rows) - lines} more layers"] if len(rows) > lines else [])
