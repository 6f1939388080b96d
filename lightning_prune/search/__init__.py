"""Widths of layers found by trying: candidates of one cost, judged right after the removal."""

from lightning_prune.search.proxy import accuracy_on
from lightning_prune.search.shifted import ShiftedScore
from lightning_prune.search.widths import Tried, WidthSearch, search_widths

__all__ = ["ShiftedScore", "Tried", "WidthSearch", "accuracy_on", "search_widths"]
