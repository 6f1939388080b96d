"""Readable tables of a channel graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_prune.channels.graph import ChannelGraph


def graph_report(graph: ChannelGraph, lines: int = 40) -> str:
    return str(graph.size)
