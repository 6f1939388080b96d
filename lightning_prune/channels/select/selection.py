"""What is asked of a network's channel groups, and what that comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Resource = Literal["macs", "params", "channels"]

NAMES: dict[Resource, str] = {"macs": "MACs", "params": "parameters", "channels": "removable channels"}

MISS = 0.01
"""By how much of the target a selection may miss it without a word."""


@dataclass(frozen=True)
class Request:
    """What is asked for, before floors, alignment and ties.

    Attributes:
        score: importance of each group, float64 [groups]: the lowest go first; +inf where none was given.
        keep: bool [groups], what is to stay where no target says how much goes.
        target: (resource, share that may be left), or None: ``keep`` decides.
        dead: bool [groups]: a layer that consists of such groups alone may lose all of them.
        stay: bool [groups], what a branch that is removed may not take along.
        shut: norms that give the same for any input; what only feeds them is of no use.
        lossless: whether the network must compute the same afterwards.
    """

    score: Tensor
    keep: Tensor
    dead: Tensor
    stay: Tensor
    target: tuple[Resource, float] | None = None
    shut: frozenset[str] = frozenset()
    lossless: bool = False


@dataclass(frozen=True)
class Selection:
    """Which channel groups stay.

    Attributes:
        keep: bool [groups].
        score: what they were ordered by, float64 [groups]; +inf for groups without a score.
        thresholds: of each layer, on the scores of its groups, float64 [layers]; 0 where nothing goes.
        kept: (kept, all) groups of each layer.
        macs, params: shares that are left, in (0, 1].
        channels: share that is left of the channels that may be removed.
        gap: mean polarisation gap of the layers that lose channels (`functional.thresholds.gap`); NaN if none does.
        target: (resource, share that may be left), or None.
        request: what was asked for.
        empty: bool [groups], the layers that lose all of their channels.
        refused: {tensor: why it keeps a channel though all of them were to go}.
        reason: why the target is missed, or "".
    """

    keep: Tensor
    score: Tensor
    thresholds: Tensor
    kept: tuple[tuple[int, int], ...]
    macs: float
    params: float
    channels: float
    gap: float
    target: tuple[Resource, float] | None
    request: Request
    empty: Tensor
    refused: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    def numbers(self) -> dict[str, float]:
        """The totals, by metric name."""
        return {"macs": self.macs, "params": self.params, "channels": self.channels, "gap": self.gap}

    @property
    def excess(self) -> float:
        """How far what is left lies over the target, as a share of the target; negative under it, 0 without one."""
        return 0.0 if self.target is None else self.numbers()[self.target[0]] / self.target[1] - 1

    def missed(self) -> str:
        """One sentence on a target that is missed by more than 1 % of it, with the reason; "" if it is met."""
        if self.target is None or abs(self.excess) <= MISS:
            return ""
        resource, share = self.target
        side = "over" if self.excess > 0 else "under"
        return (
            f"{self.numbers()[resource]:.3f} of the {NAMES[resource]} is left, {abs(self.excess):.1%} {side} the "
            f"target of {share:g}: {self.reason}"
        )
