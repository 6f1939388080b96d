"""A latency target in training: measured when the phase begins and at the removal, solved anew in between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_prune.callbacks.logs import log_latency
from lightning_prune.channels.latency.kept import read_times, write_times
from lightning_prune.channels.latency.meter import Meter, compare
from lightning_prune.channels.latency.search import MISS, LatencySearch
from lightning_prune.channels.select.selector import Selector
from lightning_prune.export.meter import METERS, check_runtime


class LatencyAim:
    """What a callback knows of latency. The first rank alone measures and solves; all get what it found.

    Args:
        target: share of the latency that may be left; None: there is no such target.
        batch: samples in a call; 0 measures nothing.
        runtime: one of `export.meter.METERS`.
        table: JSON file that keeps the times of layers; None: they are kept in checkpoints alone.

    Raises:
        ValueError: an unknown runtime.
    """

    def __init__(self, target: float | None, batch: int, runtime: str, table: str | None) -> None:
        check_runtime(runtime)
        self.target, self.runtime, self.table = target, runtime, None if table is None else Path(table)
        self.batch = batch or (1 if target is not None else 0)
        self.reset()

    def reset(self) -> None:
        self._search: LatencySearch | None = None
        self._budget: float | None = None  # seconds of the table that meet the target
        self._known: dict[str, float] = {}

    def keep(
        self, trainer: Trainer, selector: Selector, score: Tensor, example: Any, *, measure: bool, removal: bool
    ) -> Tensor | None:
        """The groups that are to stay, bool [groups]; None: there is no target of latency."""
        if self.target is None:
            return None
        keep = torch.ones(selector.units.size, dtype=torch.bool)
        if trainer.is_global_zero:
            search = self._ready(selector)
            if measure or self._budget is None:
                found = search.aim(score, example, self.target, removal=removal)
                keep, self._budget = found.selection.request.keep, found.budget
            else:
                keep = search.solve_near(score, self._budget)
        return trainer.strategy.broadcast(keep)

    def tell(self, trainer: Trainer, dense: nn.Module, small: nn.Module, example: Any) -> None:
        """Measures what a removal gave, logs it, and warns if the target is missed by more than 3 %."""
        latency = compare(self._meter(), dense, small, example, self.batch)
        log_latency(trainer, latency)
        if self.target is not None and abs(latency.ratio / self.target - 1) > MISS:
            rank_zero_warn(
                f"target_latency={self.target}: the compact network takes {latency.ratio:.3f} of the dense latency in "
                f"{self.runtime}. Other work on this machine, or widths so coarse that none comes nearer, are the "
                "usual reasons: measure again with cost_report, or lower divisor."
            )

    def release(self) -> None:
        """Lets go of the network that is being measured."""
        self._search = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {"budget": self._budget, "seconds": dict(self._known)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._budget, self._known = state.get("budget"), dict(state.get("seconds", {}))

    def _meter(self) -> Meter:
        return METERS[self.runtime]()

    def _ready(self, selector: Selector) -> LatencySearch:
        if self._search is None or self._search.selector is not selector:
            meter = self._meter()
            kept = read_times(self.table, meter) if self.table is not None else {}
            self._known = kept | self._known
            self._search = LatencySearch(selector, meter, self.batch, self._known)
            if self.table is not None:
                write_times(self.table, meter, self._known)
        return self._search
