"""Several processes that train one module, each on its part of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from tests.callbacks.processes import run_ranks, this_rank
from tests.callbacks.situations.cell import Cell, Situation
from tests.toy import loaders, samples

RANKS = 2


def train(method: str, path: Path) -> None:
    """Run on each rank: a fit, what has to hold of it there, and its weights for the others to see."""
    cell = Cell(SITUATIONS["DDP on two processes"], method, path)
    cell.fit(devices=RANKS, strategy="ddp")
    cell.check()
    torch.save({n: p.detach() for n, p in cell.module.named_parameters()}, path / f"rank{this_rank()}.pt")


def on_ranks(cell: Cell) -> None:
    """All ranks keep the promises, and end with the same weights."""
    assert run_ranks(RANKS, train, cell.method, cell.path) == [0] * RANKS
    first, *others = (torch.load(cell.path / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS))
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first), "the ranks have parted"


def shared() -> dict[str, Any]:
    """Images that Lightning's sampler deals out to the ranks: four batches an epoch to each."""
    return {"train_dataloaders": DataLoader(samples(64), 8), "val_dataloaders": loaders()["val_dataloaders"]}


SITUATIONS: dict[str, Situation] = {"DDP on two processes": Situation(data=shared, drive=on_ranks, judged=True)}
