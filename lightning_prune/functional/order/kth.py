"""The k-th largest of values that may lie in shards on several processes: by counting, nothing is gathered or sorted.

A float32 read as an integer keeps its order, so the k-th largest value is found by bisection on 32 bits: how many
values are at least this? Counts are small, add up over processes, and take no memory of the values' size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST, _MOST = -(1 << 31), (1 << 31) - 1  # of an int32
_CHUNK = 1 << 19  # values that are compared at a time: what a comparison gives stays in the cache
_ROUNDS = 32
_NARROWED = (8, 12, 16)  # before these rounds: the first leaves two octaves, of which less than half the values are


def _itself(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Shards:
    """How tensors lie over processes: each holds a run of whole rows of every tensor, in the order of the ranks.

    Attributes:
        rank: which run this process holds.
        size: processes; 1: tensors are whole.
        total: the sum of a tensor over the processes, on each of them. All must call it alike.
    """

    rank: int = 0
    size: int = 1
    total: Callable[[Tensor], Tensor] = _itself

    def of_each(self, values: Tensor) -> Tensor:
        """The values [n] of each process, [size, n]."""
        rows = values.new_zeros(self.size, len(values))
        rows[self.rank] = values
        return self.total(rows)


WHOLE = Shards()


def keys(values: Tensor) -> Tensor:
    """int32 of the shape of ``values``, in their order as float32; −0 and 0 are equal, NaN has no place."""
    bits = (values.detach().float() + 0.0).view(torch.int32)  # −0 + 0 = 0
    return torch.where(bits < 0, bits ^ _MOST, bits)


def values_of(some: Tensor) -> Tensor:
    """The float32 values whose `keys` these are."""
    return torch.where(some < 0, some ^ _MOST, some).view(torch.float32)


def kth_keys(
    parts: Sequence[Tensor], ks: Sequence[float], shards: Shards = WHOLE, prices: Sequence[float] = ()
) -> Tensor:
    """The key of each part's k-th largest value, int32 [parts]; of all parts together for a single k, [1].

    32 rounds, one sum of ``len(ks)`` counts over the processes in each.

    Args:
        parts: what `keys` gave, any shapes: this process's shards. Some may be empty.
        ks: which value of each part, from 1, or one for all.
        shards: how the parts lie over processes.
        prices: with a single k, of a value of each part: the key is then the largest from which on the values' prices,
            and not their number, add up to k. (): 1 each.

    Raises:
        ValueError: as many parts as ks are wanted, or one k; prices are for one k.
    """
    if prices and (len(ks) != 1 or len(prices) != len(parts)):
        raise ValueError(
            f"{len(prices)} prices for {len(parts)} parts and {len(ks)} ranks: give one a part, and one rank."
        )
    if len(ks) not in (1, len(parts)):
        raise ValueError(f"{len(parts)} parts have {len(ks)} ranks: give one a part, or one for all.")
    chunks: list[Sequence[Tensor]] = [part.reshape(-1).split(_CHUNK) for part in parts]
    device = parts[0].device
    wanted, each = torch.tensor(ks, device=device), torch.tensor(prices, dtype=torch.float64, device=device)
    low, high = (torch.full((len(ks),), end, device=device) for end in (_LEAST, _MOST))
    passed = torch.zeros(len(parts), dtype=torch.int64, device=device)  # values above high that are looked at no more
    for i in range(_ROUNDS):
        if i in _NARROWED and device.type == "cpu":  # a device has passes to spare, and would be waited for
            ends = (end.to(torch.int32).expand(len(parts)).tolist() for end in (low, high))
            narrowed = [_between(part, *range_) for part, *range_ in zip(chunks, *ends, strict=True)]
            chunks = [inside for inside, _ in narrowed]
            passed += torch.tensor([above for _, above in narrowed])
        middle = low + (high - low + 1) // 2
        limits = middle.to(torch.int32).expand(len(parts))
        counts = passed + torch.stack([_at_least(part, limit) for part, limit in zip(chunks, limits, strict=True)])
        if prices:
            enough = (shards.total(counts) * each).sum(0, keepdim=True) >= wanted
        else:
            enough = shards.total(counts if len(ks) == len(parts) else counts.sum(0, keepdim=True)) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle - 1)
    return low.to(torch.int32)


def _at_least(chunks: Sequence[Tensor], limit: Tensor) -> Tensor:
    return torch.stack([torch.count_nonzero(chunk >= limit) for chunk in chunks]).sum()


def _between(chunks: Sequence[Tensor], low: int, high: int) -> tuple[list[Tensor], int]:
    """The values in [low, high] of those chunks that have few of them, the other chunks whole; how many went above."""
    left, above = [], 0
    for chunk in chunks:
        inside = (chunk >= low).logical_and_(chunk <= high)
        if 2 * int(torch.count_nonzero(inside)) < len(chunk):
            above += int(torch.count_nonzero(chunk > high))
            chunk = chunk[inside]
        left.append(chunk)
    return left, above


def first_ties(ties: Sequence[Tensor], wanted: Tensor, shards: Shards = WHOLE) -> list[Tensor]:
    """Which equal values are taken: the first ``wanted`` ones, in the order of the whole tensors.

    Args:
        ties: bool, any shapes: where this process's shards hold a value that is equal to the cut.
        wanted: int64, how many to take of each tensor [tensors], or in all, tensor after tensor [1].
        shards: how the tensors lie over processes.

    Returns:
        bool, shaped as ``ties``.
    """
    counts = torch.stack([torch.count_nonzero(t) for t in ties])
    table = shards.of_each(counts)  # [processes, tensors]
    if len(wanted) == len(ties):
        before = (table.cumsum(0) - table)[shards.rank]
    else:
        order = table.T.reshape(-1)  # tensor after tensor, rank after rank
        before = (order.cumsum(0) - order).view_as(table.T).T[shards.rank]
    rooms = (wanted - before).tolist()
    return [_first(t, max(room, 0)) for t, room in zip(ties, rooms, strict=True)]


def _first(ties: Tensor, count: int) -> Tensor:
    taken = torch.zeros(ties.numel(), dtype=torch.bool, device=ties.device)
    taken[ties.reshape(-1).nonzero().squeeze(1)[:count]] = True
    return taken.view(ties.shape)
