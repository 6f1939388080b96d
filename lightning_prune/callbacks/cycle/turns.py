"""Several callbacks that prune in one fit: which may share it, in which order, and when the later one's turn is."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from lightning_prune.callbacks.phases import Phases, phases_of
from lightning_prune.callbacks.trainer import callbacks_of
from lightning_prune.errors import PhaseError


def _others(trainer: Trainer, callback: Callback) -> list[Any]:
    """The other callbacks of a fit that prune."""
    return [c for c in callbacks_of(trainer) if getattr(c, "prunes", False) and c is not callback]


def check_alone(trainer: Trainer, callback: Any) -> None:
    """Raise if another callback that prunes shares the fit: one would strip the other's masks, or change its shapes.

    One that removes channels and one that zeroes weights may, in that order: `phases_in_turn` sees to that.
    """
    for other in _others(trainer, callback):
        names = f"{type(callback).__name__} and {type(other).__name__}"
        if {callback.removes_at, other.removes_at} != {"batch start", "batch end"}:
            raise ValueError(
                f"{names} cannot prune in the same fit: each changes the weights that the other works on. One that "
                "removes channels may share a fit with one that zeroes weights, which comes after it."
            )
        order = [c for c in callbacks_of(trainer) if c in (callback, other)]
        if order[0].removes_at != "batch start":  # type: ignore[attr-defined]
            raise ValueError(
                f"{names} cannot prune in this order: a sparse network tells little of which channels matter. List "
                f"{type(order[1]).__name__} before {type(order[0]).__name__} in the Trainer's callbacks."
            )


def phases_in_turn(trainer: Trainer, callback: Any, resumed: bool) -> Phases:
    """The phases of a callback's fit, those that remove channels before it have had theirs.

    Args:
        trainer: at the start of the training. One that has trained before counts on: without a state that was resumed,
            phases lie in what is left.
        callback: that prunes.
        resumed: whether it took over a checkpoint's state.

    Raises:
        PhaseError: it zeroes weights, and would begin before the channels are gone.
    """
    done = int(trainer.current_epoch * trainer.num_training_batches) if trainer.current_epoch > 0 and not resumed else 0
    removal = _removal_before(trainer, callback) if callback.removes_at == "batch end" else 0
    warmup, sparsify, finetune = callback.durations
    phases = phases_of(trainer, warmup, sparsify, finetune, done, removal)
    if phases.begin < removal:
        raise PhaseError(
            f"{type(callback).__name__} would begin after batch {phases.begin}, but channels are removed "
            f"after batch {removal}, and weights can be zeroed from there on. Give it a longer warmup, or shorten the "
            "phases before it."
        )
    return phases


def _removal_before(trainer: Trainer, callback: Callback) -> int:
    """The batch at which a callback listed before this one removes channels; 0 if there is none."""
    earlier = [c for c in _others(trainer, callback) if c.removes_at == "batch start" and c.phases is not None]
    return max((c.phases.prune for c in earlier), default=0)
