"""A search of widths in the middle of a fit, as a score: at the removal it tries candidates on held-out batches."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scores.norm import FilterNorm
from lightning_prune.scoring.scope import ranked
from lightning_prune.search import accuracy_on
from lightning_prune.search.proxy import Proxy
from lightning_prune.search.shifted import shifted
from lightning_prune.search.widths import Method, best_of, search


class Searched(FilterNorm):
    """Widths by a search, L1 norms within a layer.

    Args:
        method: of `search_widths`.
        macs: share that each candidate leaves; the callback's.
        seed: of the search.
        data: of the fit; 8 of its validation batches judge, 3 of its training batches give BatchNorm statistics.
        candidates: how many are tried.
    """

    def __init__(self, method: Method, macs: float, seed: int, data: Any, candidates: int = 40) -> None:
        super().__init__(p=1)
        self.method, self.macs, self.seed, self.data, self.candidates = method, macs, seed, data, candidates

    def combine(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Tensor:
        quantile = ranked(units, super().combine(units, values), "layer")
        selector = Selector(units, rule=None, budget=None, delta=0.0, min_channels=0.05, divisor=1)
        evaluate = accuracy_on(islice(self.data.val_dataloader(), 8))
        images = [batch[0] for batch in islice(self.data.train_dataloader(), 3)]
        proxy = Proxy(units, quantile, selector, ("macs", self.macs), evaluate, images)
        best = best_of(search(proxy, self.method, self.candidates, self.seed))
        return shifted(quantile, units.layer, torch.tensor(best.shifts))
