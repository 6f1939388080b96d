"""Depths to choose among: how many residual branches of each stage stay, and gates that weigh what branches add."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lightning_prune.channels.analysis.branches import Branches
from lightning_prune.channels.analysis.stages import Branch, Stage, stages_of
from lightning_prune.channels.select.selection import MISS, Resource
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.masks.gates import Gate
from lightning_prune.masks.widths import Counts


class Depths:
    """The depths of some stages: in each the first blocks stay, as many as its count says.

    Args:
        stages: of a network.
        shares: of the blocks of a stage, what may be chosen, increasing up to 1.
        device: of the logits.

    Attributes:
        counts: the distributions, one a stage.
        branches: those that may go, of all stages.
        stage, rank: of each branch, int64 [branches]: its stage, and its place there; blocks that stay come first.
    """

    @classmethod
    def of(
        cls, units: ChannelUnits, shares: Sequence[float], form: str, fixed: Collection[str], device: torch.device
    ) -> Depths | None:
        """Those of a network's stages that can get shorter; None if there is none.

        Args:
            units: the network's channel groups.
            shares: as for the class.
            form: of the compact network; a rewritten graph keeps all branches.
            fixed: names of parameters that may not change.
            device: as for the class.
        """
        branches = Branches.of(units.network, units.graph, form)
        stages = [] if branches is None else stages_of(branches, units.held, fixed)
        stages = [s for s in stages if s.blocks > max(1, round(s.blocks * shares[0]))]
        return cls(stages, shares, device) if stages else None

    def __init__(self, stages: Sequence[Stage], shares: Sequence[float], device: torch.device) -> None:
        self.counts = Counts([s.blocks for s in stages], shares, device)
        self.branches: list[Branch] = [branch for s in stages for branch in s.branches]
        place = [(i, s.blocks - len(s.branches) + k) for i, s in enumerate(stages) for k in range(len(s.branches))]
        self.stage, self.rank = (torch.tensor([p[i] for p in place], dtype=torch.int64, device=device) for i in (0, 1))

    def runs(self) -> Tensor:
        """The probability that each branch stays, [branches], differentiable in the logits."""
        return self.counts.stays(self.stage, self.rank)

    def reached(self, counts: Sequence[int]) -> Tensor:
        """The branches that depths of so many blocks have, bool [branches]."""
        return self.rank < torch.tensor(counts, dtype=torch.int64, device=self.rank.device)[self.stage]

    def layers(self) -> dict[str, int]:
        """{path of a layer whose multiply-accumulates are a branch's alone: number of the branch}."""
        return {layer: i for i, branch in enumerate(self.branches) for layer in branch.layers}

    def skipped(self, selector: Selector | None, budget: tuple[Resource, float] | None) -> list[Branch]:
        """The branches behind the most likely depths; fewer where less than the budget would be left without them.

        Args:
            selector: of the network; None counts nothing.
            budget: (resource, share that may be left), or None: all go.
        """
        counts = self.counts.best()
        while True:
            reached = self.reached(counts).tolist()
            gone = [branch for branch, stays in zip(self.branches, reached, strict=True) if not stays]
            if not gone or budget is None or selector is None:
                return gone
            score = torch.zeros(selector.units.size, dtype=torch.float64)
            for branch in gone:
                score[branch.inside] = -torch.inf
            everything = torch.ones(selector.units.size, dtype=torch.bool)
            if selector.select(score, keep=everything).numbers()[budget[0]] >= budget[1] * (1 - MISS):
                return gone
            counts = self._deeper(counts)

    def _deeper(self, counts: Sequence[int]) -> list[int]:
        """Depths with more blocks in one stage: the one where that is the least unlikely."""
        logits = self.counts.logits.detach().log_softmax(1).tolist()
        more = [
            (logits[i][k] - max(p for p, c in zip(logits[i], self.counts.counts[i], strict=True) if c == now), i, count)
            for i, now in enumerate(counts)
            for k, count in enumerate(self.counts.counts[i])
            if count > now
        ]
        _, stage, count = max(more, key=lambda each: (each[0], -each[2]))
        return [count if i == stage else now for i, now in enumerate(counts)]

    def gates(self) -> dict[str, Gate]:
        """{path of the layer that a branch ends in: the gate on its output}."""
        places = zip(self.branches, self.stage.tolist(), self.rank.tolist(), strict=True)
        return {b.end: BranchGate(self.counts, stage, rank, owner=i == 0) for i, (b, stage, rank) in enumerate(places)}


class BranchGate(Gate):
    """What a residual branch adds, times the weight of the depths that reach it.

    While a step runs, ``w₁·1[rank < d₁] + w₂·1[rank < d₂]`` of both drawn depths, which makes the stream at the end of
    the stage ``w₁·x[d₁] + w₂·x[d₂]`` where branches do not depend on each other. Else 1 or 0, by the most likely depth.

    Args:
        depths: shared by all gates.
        stage: the row.
        rank: of the branch in it.
        owner: whether this gate stands for the logits of all.
    """

    def __init__(self, depths: Counts, stage: int, rank: int, owner: bool) -> None:
        self.depths, self.stage, self.rank, self.owner = depths, stage, rank, owner

    def __call__(self, x: Tensor) -> Tensor:
        drawn = self.depths.drawn
        if drawn is None:
            return x if self.rank < self.depths.best()[self.stage] else torch.zeros_like(x)
        inside = [self.rank < self.depths.counts[self.stage][i] for i in drawn[0][self.stage]]
        weights = drawn[1][self.stage].to(x.dtype)
        return x * (weights * weights.new_tensor(inside)).sum()

    def parameters(self) -> Sequence[Tensor]:
        return [self.depths.logits] if self.owner else []

    def expire(self) -> None:
        self.depths.drawn = None
