"""Phases of a run, ``warmup → sparsify → (prune) → finetune``, resolved to counts of training batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Union

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.errors import PhaseError

# An int counts epochs, a float is a share of the whole training, "300 steps" counts optimizer steps.
Duration = Union[int, float, str]  # noqa: UP007  (jsonargparse reads it at run time, on Python 3.10 too)
Phase = Literal["warmup", "sparsify", "finetune"]


@dataclass(frozen=True)
class Training:
    """The length of a training: epochs, batches in each, optimizer steps per batch group."""

    epochs: float
    batches_per_epoch: int
    total_batches: int
    accumulate: int = 1


@dataclass(frozen=True)
class Phases:
    """Boundaries in completed batches: sparsify begins at ``begin``, the hard prune happens at ``prune``."""

    begin: int
    prune: int
    total: int

    def at(self, batches: int) -> Phase:
        """The phase that the next batch belongs to, after ``batches`` completed ones."""
        if batches < self.begin:
            return "warmup"
        return "sparsify" if batches < self.prune else "finetune"

    def progress(self, batches: int) -> float:
        """Position in the sparsify phase, from 0 to 1."""
        return min(max((batches - self.begin) / max(self.prune - self.begin, 1), 0.0), 1.0)


def _batches(value: Duration, name: str, training: Training) -> float:
    if isinstance(value, bool):
        raise PhaseError(f"{name}={value!r}: give epochs (int), a share of the training (float) or '300 steps'.")
    if isinstance(value, str):
        number, _, unit = value.strip().partition(" ")
        if unit.strip() not in ("step", "steps") or not number.isdigit():
            raise PhaseError(f"{name}={value!r}: a duration in words looks like '300 steps'.")
        return int(number) * training.accumulate
    if value < 0:
        raise PhaseError(f"{name}={value!r} must not be negative.")
    if isinstance(value, float):
        if value > 1:
            raise PhaseError(
                f"{name}={value!r}: a float is a share of the training, at most 1.0; an int counts epochs."
            )
        share = value * training.total_batches
        epochs = round(share / training.batches_per_epoch)
        # To the nearest epoch boundary where that does not distort the phase; short trainings count batches.
        near = abs(epochs * training.batches_per_epoch - share) <= 0.25 * share
        return epochs * training.batches_per_epoch if near else round(share)
    return value * training.batches_per_epoch


def resolve_phases(warmup: Duration, sparsify: Duration, finetune: Duration | None, training: Training) -> Phases:
    """Turn durations into batch counts.

    Args:
        warmup: dense training before the masks are set.
        sparsify: training with masks, up to the hard prune.
        finetune: training after the prune; None, and whatever is left over, goes on to the end of the training.
        training: length of the training.

    Raises:
        PhaseError: a duration is malformed, or the phases are longer than the training.
    """
    begin = _batches(warmup, "warmup", training)
    length = _batches(sparsify, "sparsify", training)
    rest = 0.0 if finetune is None else _batches(finetune, "finetune", training)
    # Shares that add up to 1 may overshoot by rounding to epochs: the finetune phase gives way.
    slack = training.batches_per_epoch if isinstance(finetune, float) else 0
    if begin + length + rest > training.total_batches + slack or begin + length > training.total_batches:
        raise PhaseError(
            f"warmup={warmup!r} + sparsify={sparsify!r}"
            + (f" + finetune={finetune!r}" if finetune is not None else "")
            + f" take {begin + length + rest:g} batches, but the training has {training.total_batches} "
            f"({training.epochs:g} epochs of {training.batches_per_epoch}). Train longer (max_epochs, max_steps), "
            "or shorten the phases; floats are shares of the training and always fit when they add up to 1."
        )
    return Phases(int(begin), int(begin + length), training.total_batches)


def training_length(trainer: Trainer) -> Training:
    """How long the trainer will train; available from ``on_train_start`` on.

    Raises:
        PhaseError: the training has no known length.
    """
    per_epoch = trainer.num_training_batches
    epochs = float("inf") if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    steps = float("inf") if trainer.max_steps in (None, -1) else trainer.max_steps * trainer.accumulate_grad_batches
    total = min(epochs * per_epoch, steps)
    if total == float("inf"):
        raise PhaseError(
            f"The training has no known length (max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}, "
            f"{per_epoch} batches per epoch). Set max_steps, or max_epochs with limit_train_batches."
        )
    per_epoch = max(1, int(min(per_epoch, total)))
    return Training(total / per_epoch, per_epoch, int(total), trainer.accumulate_grad_batches)


def phases_of(
    trainer: Trainer, warmup: Duration, sparsify: Duration, finetune: Duration | None, done: int = 0, first: int = 0
) -> Phases:
    """The phases of this trainer's fit, after the batches that are ``done`` already.

    ``fast_dev_run`` gets a batch or two of each, from batch ``first`` on, whatever the durations say.
    """
    training = training_length(trainer)
    if done:
        left = max(0, training.total_batches - done)
        training = replace(training, epochs=left / training.batches_per_epoch, total_batches=left)
    if getattr(trainer, "fast_dev_run", False):
        return Phases(first, max(first + 1, training.total_batches - 1), training.total_batches)
    return resolve_phases(warmup, sparsify, finetune, training)


def carried_over(trainer: Trainer, seen: int, before: int | None) -> tuple[int, int]:
    """Where a run is, in its own batches, and how many of these make an epoch.

    Lightning goes on with the epoch, and with the batch of the epoch, that a checkpoint names. With another number of
    ranks or another batch size an epoch has other batches, and the phases must move with it; not where ``max_steps``
    ends the training, which counts on in steps.

    Args:
        trainer: at the start of the training.
        seen: completed batches, of a checkpoint's run if it was resumed.
        before: batches of an epoch in that run; None if there was none, or it does not say.
    """
    now = training_length(trainer)
    if before in (None, now.batches_per_epoch) or now.epochs != trainer.max_epochs:
        return seen, now.batches_per_epoch
    assert before is not None
    epochs, rest = divmod(seen, before)
    rank_zero_warn(
        f"The checkpoint's run had {before} batches an epoch and this one has {now.batches_per_epoch} (another number "
        "of processes, or another batch size): it goes on at the same epoch of the same phase, but cannot end in the "
        "same bits."
    )
    return epochs * now.batches_per_epoch + min(rest, now.batches_per_epoch), now.batches_per_epoch
