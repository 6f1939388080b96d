"""Where a run stands: what every method, of either kind, knows about its place in the phases."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.callbacks.phases import Duration, Phases, phases_of


class Run:
    """Base of all methods: the batches that were seen, and the phases that they lie in.

    Attributes:
        durations: of warm-up, sparsify and finetune, as the user gave them.
        seen: completed training batches.
        phases: None before the length of the training is known.
        accumulate: batches per optimizer step.
    """

    durations: tuple[Duration, Duration, Duration | None]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Back to the state before any fit."""
        self.seen = 0
        self.phases: Phases | None = None
        self.accumulate = 1

    def enter(self, trainer: Trainer) -> Phases:
        """Take the length of the training over, once the trainer knows it."""
        self.accumulate = trainer.accumulate_grad_batches
        self.phases = phases_of(trainer, *self.durations)
        return self.phases

    @property
    def progress(self) -> float:
        """Position in the sparsify phase, from 0 to 1."""
        return self.phases.progress(self.seen) if self.phases is not None else 0.0

    @property
    def sparsify_steps(self) -> int:
        """Optimizer steps in the sparsify phase, at least 1."""
        if self.phases is None:
            return 1
        return max(1, (self.phases.prune - self.phases.begin) // self.accumulate)

    def warn_still_dense(self) -> None:
        """Say that the training ended before sparsify began."""
        rank_zero_warn(
            f"Training ended in the warm-up, after {self.seen} batches of which sparsify was to begin after "
            f"{self.phases.begin if self.phases else '?'}: nothing was pruned. Its checkpoints resume the phase."
        )
