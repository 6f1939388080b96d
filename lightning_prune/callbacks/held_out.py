"""Batches of held-out data beside a training: the k-th is the same in every run, resumed ones too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_prune.callbacks.trainer import batch_on_device


class HeldOut:
    """Goes through a loader again and again. The global random state, and so the fit's own data, is left alone.

    Args:
        loader: of batches like those of the training; one that shuffles does so as a function of the pass.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self._length = 0  # batches of a pass, once it is known
        self._go_to(0)

    def _go_to(self, number: int) -> None:
        self._pass, self._next = number, number * self._length
        self._iterator: Iterator[Any] | None = None

    def batch(self, trainer: Trainer, k: int) -> Any:
        """The k-th batch, on the device; those of less than two samples, which no BatchNorm can train on, do not count.

        Raises:
            ValueError: the loader has no batch, or none after its first pass.
        """
        if k < self._next:
            self._go_to(0)
        while True:
            if self._length and k // self._length > self._pass:  # whole passes need not be read
                self._go_to(k // self._length)
            found = self._fetch()
            self._next += 1
            if self._next > k:
                return batch_on_device(trainer, found)

    def _fetch(self) -> Any:
        while True:
            with isolate_rng():
                torch.manual_seed(1_000_003 * self._pass + self._next)
                if self._iterator is None:
                    self._iterator = iter(self.loader)
                found = next(self._iterator, None)
            if found is None:
                if self._next == self._pass * self._length:
                    raise ValueError(
                        f"held_out has no batch{' left, and cannot be read twice' if self._pass else ''}: give a "
                        "loader of data that the weights do not train on."
                    )
                self._length = self._length or self._next
                self._go_to(self._pass + 1)
            elif _samples(found) > 1:
                return found


def _samples(batch: Any) -> int:
    return max((len(t) for t in pytree.tree_leaves(batch) if isinstance(t, Tensor) and t.ndim), default=0)


def first_loader(loaders: Any) -> Iterable[Any] | None:
    """One loader of those that a Trainer or a user has: itself, or the first of a list or dict."""
    found = pytree.tree_leaves(loaders) if isinstance(loaders, (list, tuple, dict)) else [loaders]
    return found[0] if found else None
