"""A union-find over channel labels, vectorised: every channel index of every tensor is one integer."""

from __future__ import annotations

import torch
from torch import Tensor

FROZEN_IDS = 1 << 16
"""Labels below this number are frozen; each of them stands for one reason. Ordinary labels follow."""

UNLABELLED = 0
"""The label of a position that no parameter controls (a constant, the network's input)."""


class Labels:
    """Channel labels, and which of them are united to one group.

    A union always keeps the smaller root. Because the frozen labels are the smallest, whatever is united with a
    frozen label is frozen too, with its reason attached, and no rule has to think about it.
    """

    def __init__(self) -> None:
        self._parent = torch.arange(FROZEN_IDS + (1 << 16))
        self._next = FROZEN_IDS
        self._pending: list[tuple[Tensor, Tensor]] = []  # of equal shapes, still to be united
        self._reasons: dict[str, int] = {"not controlled by a parameter": UNLABELLED}

    def fresh(self, count: int) -> Tensor:
        """Returns `count` new labels, each its own group: an int64 tensor of shape (count,)."""
        start, self._next = self._next, self._next + count
        if self._next > len(self._parent):
            self._parent = torch.cat([self._parent, torch.arange(len(self._parent), 2 * self._next)])
        return torch.arange(start, self._next)

    @property
    def size(self) -> int:
        """One more than the largest label so far."""
        return self._next

    def roots(self) -> Tensor:
        """Returns the root of every label so far, int64 of shape (labels,)."""
        return self.find(torch.arange(self._next))

    def find(self, labels: Tensor) -> Tensor:
        """Returns the root of each label, in the shape of `labels`."""
        if self._pending:
            self._settle()
        return self._parent[labels]

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Puts `first[i]` and `second[i]` in one group, for every i; the shapes must broadcast."""
        if first.shape != second.shape:
            first, second = torch.broadcast_tensors(first, second)
        self._pending.append((first, second))

    def _settle(self) -> None:
        """Does what unions are left to do, all at once: a network has hundreds, and asks for roots a few times."""
        first, second = (torch.cat([pair[i].reshape(-1) for pair in self._pending]) for i in (0, 1))
        self._pending.clear()
        while not torch.equal(a := self._parent[first], b := self._parent[second]):
            self._parent.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
            for part in (self._parent[: len(self._reasons)], self._parent[FROZEN_IDS : self._next]):
                self._shorten(part)

    def _shorten(self, parents: Tensor) -> None:
        """Makes all parents roots; every round halves the ways, which are long in a deep network."""
        while not torch.equal(above := self._parent[parents], parents):
            parents.copy_(above)

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Freezes every group that `labels` touches and remembers why."""
        if labels.numel() == 0:
            return
        identity = self._reasons.setdefault(reason, len(self._reasons))
        if identity >= FROZEN_IDS:
            raise RuntimeError(f"more than {FROZEN_IDS} distinct reasons to freeze; this is a bug, please report it")
        self.unite(labels, torch.tensor(identity))

    def reasons(self) -> dict[int, list[str]]:
        """Returns {frozen root: every reason that was recorded for its group}."""
        texts = list(self._reasons)
        roots = self.find(torch.tensor(list(self._reasons.values()))).tolist()
        grouped: dict[int, list[str]] = {}
        for root, text in zip(roots, texts, strict=True):
            grouped.setdefault(root, []).append(text)
        for reasons in grouped.values():
            if len(reasons) > 1 and texts[0] in reasons:
                reasons.remove(texts[0])  # the unspecific reason says nothing beside a specific one
        return grouped
