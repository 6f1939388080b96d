"""Batches of held-out data beside a training: the k-th is the same in every run, resumed ones too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils import _pytree as pytree

from lightning_prune.callbacks.trainer import batch_on_device


class HeldOut:
    """Goes through a loader again and again. The global random state, and so the fit's own data, is left alone.

    Args:
        loader: of batches like those of the training; one that shuffles does so as a function of the pass.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self._restart(0)

    def _restart(self, done: int) -> None:
        self._pass, self._at = done, 0
        self._iterator: Iterator[Any] = iter(())
        self._next = 0  # batches that were given, over all passes

    def batch(self, trainer: Trainer, k: int) -> Any:
        """The k-th batch, on the device.

        Raises:
            ValueError: the loader has no batch.
        """
        if k < self._next:
            self._restart(0)
        length = len(self.loader) if isinstance(self.loader, Sized) else 0
        if length and k // length > self._pass:  # whole passes need not be read
            self._restart(k // length)
            self._next = k // length * length
        while True:
            found = self._fetch()
            self._next += 1
            if self._next > k:
                return batch_on_device(trainer, found)

    def _fetch(self) -> Any:
        for _ in range(2):
            with isolate_rng():
                torch.manual_seed(1_000_003 * self._pass + self._at)
                if self._at == 0:
                    self._iterator = iter(self.loader)
                found = next(self._iterator, None)
            self._at += 1
            if found is not None:
                return found
            self._pass, self._at = self._pass + 1, 0
        raise ValueError("held_out has no batch: give a loader of data that the weights do not train on.")


def first_loader(loaders: Any) -> Iterable[Any] | None:
    """One loader of those that a Trainer or a user has: itself, or the first of a list or dict."""
    found = pytree.tree_leaves(loaders) if isinstance(loaders, (list, tuple, dict)) else [loaders]
    return found[0] if found else None
