"""A small table as text and as HTML, for what is printed and for what notebooks show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """Cells as text, and lines above and below them.

    Attributes:
        head: the columns' titles.
        rows: cells, as many in each row as there are columns.
        above, below: lines around the table.
        left: how many columns, from the first, are aligned left; numbers are not.
        total: whether the last row sums up those before it, so that a rule stands between.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    above: Sequence[str] = ()
    below: Sequence[str] = ()
    left: int = 1
    total: bool = False

    def __str__(self) -> str:
        """Columns two spaces apart, a rule below the head; all lines of the table are of one length."""
        cells = [self.head, *self.rows]
        width = [max(map(len, column)) for column in zip(*cells, strict=True)]
        sides = self._sides("<", ">")
        lines = ["  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, width, strict=True)) for row in cells]
        rule = "-" * len(lines[0])
        lines.insert(1, rule)
        if self.total:
            lines.insert(-1, rule)
        return "\n".join([*self.above, *lines, *self.below])

    def _repr_html_(self) -> str:
        """The same in HTML, without a style of its own but for the alignment."""
        body = "".join(self._row(row, "td") for row in self.rows)
        table = f"<table><thead>{self._row(self.head, 'th')}</thead><tbody>{body}</tbody></table>"
        before, after = ("".join(f"<p>{escape(line)}</p>" for line in lines) for lines in (self.above, self.below))
        return before + table + after

    def _row(self, cells: Sequence[str], tag: str) -> str:
        styled = zip(cells, self._sides("left", "right"), strict=True)
        return f"<tr>{''.join(f'<{tag} style=text-align:{side}>{escape(cell)}</{tag}>' for cell, side in styled)}</tr>"

    def _sides(self, left: str, right: str) -> list[str]:
        return [left if i < self.left else right for i in range(len(self.head))]


class Shown:
    """Base of results that are shown as one table: printed as text, in notebooks as HTML."""

    def table(self) -> Table:
        """What is shown."""
        raise NotImplementedError(f"{type(self).__name__} has no table")

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def mib(size: int | None) -> str:
    """A size in bytes as text."""
    return "-" if size is None else f"{size / 2**20:.2f} MiB"


def ms(seconds: float | None) -> str:
    """A time as text."""
    return "-" if seconds is None else f"{1e3 * seconds:.2f} ms"


def percent(share: float | None) -> str:
    """A share as text."""
    return "-" if share is None else f"{share:.2%}"
