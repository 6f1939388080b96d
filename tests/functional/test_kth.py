"""The k-th largest value by counting: that of a sort, on one process and on shards, ties in the order of the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from lightning_prune.functional import budget
from lightning_prune.functional.order.kth import Shards, keys, kth_keys, values_of

SIZE = 3  # processes


class Ring:
    """Sums over threads that stand for processes."""

    def __init__(self, size: int) -> None:
        self.parts: list[Tensor | None] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)
        self.elements = 0

    def total(self, rank: int) -> Callable[[Tensor], Tensor]:
        def summed(x: Tensor) -> Tensor:
            self.parts[rank] = x
            self.elements += x.numel() if rank == 0 else 0
            self.barrier.wait()
            out = torch.stack([p for p in self.parts if p is not None]).sum(0)
            self.barrier.wait()
            return out

        return summed


def in_rows(whole: Tensor, rank: int) -> Tensor:
    """Rank's rows, as ``torch.chunk`` and FSDP2 give them; none for the last ranks of a tensor of few rows."""
    chunks = whole.chunk(SIZE)
    return chunks[rank] if rank < len(chunks) else whole[:0]


def on_shards(run: Callable[[list[Tensor], Shards], list[Tensor]], wholes: Sequence[Tensor]) -> tuple[list, int]:
    """Each rank's result, put together to whole tensors, and how many numbers a process sent."""
    ring = Ring(SIZE)
    with ThreadPoolExecutor(SIZE) as pool:
        jobs = [
            pool.submit(run, [in_rows(w, rank) for w in wholes], Shards(rank, SIZE, ring.total(rank)))
            for rank in range(SIZE)
        ]
        found = [job.result() for job in jobs]
    return [torch.cat(parts) for parts in zip(*found, strict=True)], ring.elements


def test_keys_have_the_order_of_the_values_and_lead_back_to_them():
    values = torch.tensor([-torch.inf, -3.5, -1e-40, 0.0, 1e-40, 1.0, 3e38, torch.inf])
    assert (keys(values).diff() > 0).all()
    assert torch.equal(values_of(keys(values)), values)
    assert torch.equal(keys(torch.tensor([-0.0])), keys(torch.tensor([0.0])))


@pytest.mark.parametrize("k", [1, 2, 250, 499, 500])
def test_the_kth_largest_is_that_of_a_sort(k):
    values = torch.randn(500, generator=torch.Generator().manual_seed(k)).round(decimals=2)
    [found] = values_of(kth_keys([keys(values)], [k])).tolist()
    assert found == float(values.sort(descending=True).values[k - 1])
    halves = [keys(values[:100]), keys(values[100:])]
    assert values_of(kth_keys(halves, [k])).tolist() == [found]  # of all parts together
    with pytest.raises(ValueError, match="2 parts have 3 ranks"):
        kth_keys(halves, [1, 2, 3])


@pytest.mark.parametrize("keep", [41, 305])
def test_masks_of_shards_are_those_of_the_whole_and_no_weight_is_sent(keep):
    generator = torch.Generator().manual_seed(keep)
    shapes = [(10, 5, 3), (2, 16), (100, 2)]  # rows: 4, 4, 2 a process; 1, 1, 0; 34, 34, 32
    scores = [torch.rand(shape, generator=generator).round(decimals=1) for shape in shapes]  # ties all over
    least, total = [20, 5, 15], 382
    whole = budget.exact_masks(scores, least, keep)
    assert sum(int(m.sum()) for m in whole) == keep
    shards, sent = on_shards(lambda parts, s: budget.exact_masks(parts, least, keep, s, total), scores)
    assert all(torch.equal(a, b) for a, b in zip(shards, whole, strict=True))
    assert sent <= 32 * (1 + 3 + 1) + 3 * (3 * SIZE) + 5 * 3  # counts of three bisections, tables of ties, NaN, cuts


def test_what_a_price_buys_is_the_same_on_shards():
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(shape, generator=generator).round(decimals=1) for shape in [(10, 5, 3), (2, 16), (100, 2)]]
    least, prices = [20, 5, 15], (7.0, 1.5, 2.0)
    total = budget.cost([s.numel() for s in scores], prices)
    whole = budget.exact_masks(scores, least, 700.0, prices=prices)
    shards, _ = on_shards(lambda parts, s: budget.exact_masks(parts, least, 700.0, s, total, prices), scores)
    assert all(torch.equal(a, b) for a, b in zip(shards, whole, strict=True))
    with pytest.raises(ValueError, match="2 prices for 3 parts and 1 ranks"):
        kth_keys([keys(s) for s in scores], [700.0], prices=(7.0, 1.5))


def test_ties_go_to_the_first_of_the_whole():
    equal = [torch.ones(6, 2), torch.ones(7)]
    masks, _ = on_shards(lambda parts, s: budget.exact_masks(parts, [1, 1], 14, s, 19), equal)
    # a weight of each layer for its floor; then layer after layer, whichever process holds it
    assert masks[0].flatten().tolist() == [True] * 12
    assert masks[1].tolist() == [True, True] + [False] * 5


def test_floors_of_thresholds_hold_on_shards():
    weights = [torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12.0).view(4, 3)]
    none = [torch.zeros_like(w, dtype=torch.bool) for w in weights]
    whole = budget.at_least([none[0], ~none[1]], weights, [5, 2])
    assert [int(m.sum()) for m in whole] == [5, 12]
    convolution = torch.ones(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    [kept] = budget.at_least([convolution > 1], [convolution], [7])
    assert kept.flatten().tolist() == [True] * 7 + [False] * 41

    def run(parts: list[Tensor], shards: Shards) -> list[Tensor]:
        empty = [torch.zeros_like(p, dtype=torch.bool) for p in parts]
        return budget.at_least([empty[0], ~empty[1]], parts, [5, 2], shards)

    shards, _ = on_shards(run, weights)
    assert all(torch.equal(a, b) for a, b in zip(shards, whole, strict=True))
    taus, _ = on_shards(lambda parts, s: [budget.largest_thresholds(parts, [5, 2], s)[None]], weights)
    assert torch.equal(taus[0][0], budget.largest_thresholds(weights, [5, 2]))


def test_a_nan_on_one_process_is_an_error_on_all():
    scores = [torch.ones(6), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, torch.nan])]

    def run(parts: list[Tensor], shards: Shards) -> list[Tensor]:
        with pytest.raises(budget.BudgetError, match=r"\[1\] hold NaN"):
            budget.exact_masks(parts, [1, 1], 6, shards, 12)
        return [torch.ones(1)]

    told, _ = on_shards(run, scores)
    assert len(told[0]) == SIZE
