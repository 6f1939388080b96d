"""Magnitude pruning as a callback: one threshold on |w| for the whole network, the rival in LTP's own table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_prune.callbacks.base import PruningCallback
from lightning_prune.functional import budget
from lightning_prune.functional.schedules import cubic_path
from lightning_prune.masks import Gate, HardGate, Target

_UPDATES = 50  # times in the phase that the threshold is moved; between them the network heals


class MagnitudeCallback(PruningCallback):
    """Global magnitude pruning: gradual with a cubic schedule (Zhu & Gupta, arXiv 1710.01878), or in one shot.

    Args:
        target_sparsity: share of weights to prune; 0.9 if no target is given.
        schedule: "cubic" prunes along the sparsify phase; "oneshot" trains dense through it and prunes at its end.
        options: as for `PruningCallback`.
    """

    def __init__(
        self,
        target_sparsity: float | None = None,
        schedule: Literal["cubic", "oneshot"] = "cubic",
        **options: Any,
    ) -> None:
        if target_sparsity is None and options.get("target_compression") is None:
            target_sparsity = 0.9
        if schedule not in ("cubic", "oneshot"):
            raise ValueError(f"schedule={schedule!r} must be 'cubic' or 'oneshot'.")
        super().__init__(target_sparsity=target_sparsity, **options)
        self.schedule = schedule

    def start(self, targets: Sequence[Target]) -> None:
        device = targets[0].param.device
        self._tau = torch.zeros(len(targets), device=device)
        self._steps = torch.zeros((), dtype=torch.int64)

    def gates(self) -> list[Gate]:
        return [HardGate(tau) for tau in self._tau.unbind()]

    def thresholds(self) -> Tensor:
        return self._tau

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return [w.square() for w in weights]

    def tensors(self) -> dict[str, Tensor]:
        return {"tau": self._tau, "steps": self._steps}

    def learn(self, stats: Tensor, active: Tensor) -> None:
        assert self.target_sparsity is not None
        self._steps += 1
        every = max(1, self.sparsify_steps // _UPDATES)
        if self.schedule == "oneshot" or int(self._steps) % every:
            return
        keep = budget.keep_count(self.numel, cubic_path(self.progress, 1 - self.target_sparsity))
        squares = torch.cat([t.param.detach().reshape(-1).float().square() for t in self.targets])
        caps = torch.stack(
            [budget.largest_threshold(t.param, n) for t, n in zip(self.targets, self.floors, strict=True)]
        )
        cut = torch.kthvalue(squares, self.numel - keep).values if keep < self.numel else squares.new_zeros(())
        self._tau.copy_(torch.minimum(cut.expand_as(caps), caps))
