"""Which sample comes when: splits, subsets and training batches that are functions of a seed and a position.

A pruning run that stops and resumes must see the batches it would have seen. Here the order of an epoch depends on
``(seed, epoch)`` and the augmentation of a batch on ``(seed, epoch, batch index)``, never on global random state, and
`ReplayLoader` tells Lightning how far it got, so that a run resumed in the middle of an epoch goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

Augment = Callable[[Any, torch.Generator], Any]
"""Maps a collated batch and a seeded generator to an augmented batch."""


def seeded_generator(seed: int, *position: int) -> torch.Generator:
    """Returns a CPU generator whose stream depends on the seed and on a position such as (epoch, batch)."""
    state = seed
    for number in position:
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(state % 2**63)


def balanced_order(labels: Tensor, seed: int) -> Tensor:
    """Orders samples at random such that every prefix is as balanced over the classes as it can be.

    Returns:
        A permutation of ``range(N)``, int64, shape (N,). A class with few samples runs out, the others go on.
    """
    permutation = torch.randperm(len(labels), generator=seeded_generator(seed))
    shuffled = labels[permutation]
    rank_in_class = torch.empty_like(permutation)
    for label in shuffled.unique():
        members = (shuffled == label).nonzero().squeeze(1)
        rank_in_class[members] = torch.arange(len(members))
    return permutation[rank_in_class.argsort(stable=True)]


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits samples, class indices (N,), in two with the same share of each class; ``fraction`` is the second's.

    Returns:
        Sorted indices of the first and of the second part, int64; the share is rounded per class.

    Raises:
        ValueError: if fraction is outside [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"the split fraction must be in [0, 1), got {fraction}")
    order = torch.randperm(len(labels), generator=seeded_generator(seed))
    second = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[labels[order] == label]
        second[members[: round(fraction * len(members))]] = True
    return (~second).nonzero().squeeze(1), second.nonzero().squeeze(1)


class EpochSampler(Sampler[int]):
    """A random order that is a function of (seed, epoch). Lightning calls ``set_epoch`` before every epoch.

    Args:
        size: number of samples.
        seed: seed of all orders.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.size, generator=seeded_generator(self.seed, self.epoch)).tolist()


def _as_is(batch: Any) -> Any:
    """The collate function of datasets that return whole batches."""
    return batch


class ReplayLoader(DataLoader[Any]):
    """A training loader that can stop anywhere and go on with the batch that would have come next.

    It keeps ``(epoch, batches handed out)`` in its ``state_dict``, which Lightning stores in every checkpoint. A state
    from a finished epoch has no effect on the next one. An iteration starts with its first batch, not with ``iter``:
    Lightning creates the iterator before it sets the epoch, and workers would prefetch the wrong order.

    Args:
        dataset: a map-style dataset; with an attribute ``returns_batches = True``, what its ``__getitems__`` returns is
            taken as a collated batch.
        seed: seed of the augmentation.
        augment: applied to every batch, in this process, with a generator seeded by (seed, epoch, batch index).
        **kwargs: passed to `torch.utils.data.DataLoader`; give an `EpochSampler` as ``sampler``.
    """

    def __init__(self, dataset: Dataset[Any], seed: int = 0, augment: Augment | None = None, **kwargs: Any) -> None:
        if getattr(dataset, "returns_batches", False):
            kwargs["collate_fn"] = _as_is
        super().__init__(dataset, **kwargs)
        self.seed = seed
        self.augment = augment
        self._position = (0, 0)
        self._resume: tuple[int, int] | None = None

    @property
    def epoch(self) -> int:
        """The epoch its sampler was set to; 0 for samplers without epochs."""
        return int(getattr(self.sampler, "epoch", 0))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        epoch, skip = self.epoch, 0
        if self._resume is not None:
            skip = self._resume[1] if self._resume[0] == epoch else 0
            self._resume = None
        self._position = (epoch, skip)
        for index, batch in enumerate(self._rest(skip) if skip else super().__iter__(), start=skip):
            self._position = (epoch, index + 1)
            yield batch if self.augment is None else self.augment(batch, seeded_generator(self.seed, epoch, index))

    def _rest(self, skip: int) -> Iterator[Any]:
        """The epoch's batches after the first ``skip``, none of which is loaded."""
        assert self.batch_sampler is not None
        batches = list(islice(iter(self.batch_sampler), skip, None))
        rest: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            pin_memory=self.pin_memory,
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.multiprocessing_context,
        )
        return iter(rest)

    def state_dict(self) -> dict[str, int]:
        """Returns the position: the epoch and how many of its batches were handed out."""
        return {"epoch": self._position[0], "batches": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration skip what was handed out, if it is of the same epoch."""
        self._resume = (int(state["epoch"]), int(state["batches"]))
