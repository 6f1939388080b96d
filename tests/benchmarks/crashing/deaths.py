"""How a training process dies: at a hook, at a byte of a checkpoint's write, or at any moment."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import lightning
from fsspec.implementations.local import LocalFileOpener

EPOCHS, BATCHES = 6, 4  # of every fit
BEGIN, PRUNE = BATCHES, 4 * BATCHES  # where the sparsify phase begins and ends
EVERY = 3  # steps between checkpoints; two files each: its own, and "last"
WRITES = 2 * (EPOCHS * BATCHES // EVERY)
_WRITES_LEFT = WRITES - 2 * (PRUNE // EVERY)  # after the first death of two, at least

IN_A_BATCH = (
    "on_train_batch_start", "on_before_zero_grad", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end"
)  # fmt: skip
BETWEEN = ("on_validation_start", "on_validation_end", "on_train_epoch_end", "on_save_checkpoint")


@dataclass(frozen=True)
class Death:
    """One of them, as data.

    Attributes:
        way: "hook", "write" (of the temporary file), "copy" (of that file to its place, as it is done between file
            systems), "rename" (right before or after it) or "timer".
        at: completed batches from which on a hook kills; else the number of the write.
        hook: its name.
        share: of the bytes that are written, or of the processor time of a whole life.
    """

    way: str
    at: int = 0
    hook: str = ""
    share: float = 0.0


def die() -> NoReturn:
    """The end, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Reaper(lightning.Callback):
    """Kills at a hook."""

    def __init__(self, death: Death) -> None:
        setattr(self, death.hook, self._strike)
        self._at = death.at

    def _strike(self, trainer: Any, *args: Any) -> None:
        if next(c for c in trainer.callbacks if hasattr(c, "seen")).seen >= self._at:
            die()


def prepare(death: Death, seconds: float) -> list[Any]:
    """Lets this process die so; the callbacks that it needs.

    Args:
        death: how.
        seconds: processor time of a whole life.
    """
    if death.way == "hook":
        return [Reaper(death)]
    if death.way == "timer":
        # Processor time, so that a busy machine changes nothing; SIGPROF ends a process as SIGKILL does.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, max(death.share * seconds, 1e-3))
    elif death.way == "write":
        LocalFileOpener.write = _dying_write(death, LocalFileOpener.write)
    else:
        shutil.move = _dying_move(death, shutil.move)  # type: ignore[assignment]
    return []


def _dying_write(death: Death, write: Callable[..., Any]) -> Callable[..., Any]:
    numbers = count()

    def dying(self: Any, data: bytes) -> Any:
        if next(numbers) == death.at:
            write(self, data[: int(death.share * len(data))])
            self.flush()
            die()
        return write(self, data)

    return dying


def _dying_move(death: Death, move: Callable[..., Any]) -> Callable[..., Any]:
    numbers = count()

    def dying(source: str, target: str) -> Any:
        mine = next(numbers) == death.at
        if mine and death.way == "copy":
            data = Path(source).read_bytes()
            Path(target).write_bytes(data[: int(death.share * len(data))])
            die()
        if mine and death.share < 0.5:
            die()
        done = move(source, target)
        if mine:
            die()
        return done

    return dying


def _hook(low: int, high: int) -> Callable[[random.Random], Death]:
    """At a hook of one of the batches low..high, counted from 0."""
    return lambda draw: Death("hook", draw.randint(low, high), draw.choice(IN_A_BATCH))


KINDS: dict[str, Callable[[random.Random], Death]] = {
    "warm-up": _hook(0, BEGIN - 1),
    "start of the phase": _hook(BEGIN, BEGIN),
    "sparsify": _hook(BEGIN + 1, PRUNE - 1),
    "removal": _hook(PRUNE, PRUNE),
    "finetune": _hook(PRUNE + 1, EPOCHS * BATCHES - 2),
    "between batches": lambda draw: Death("hook", draw.randrange(EPOCHS * BATCHES), draw.choice(BETWEEN)),
    "write": lambda draw: Death("write", draw.randrange(WRITES), share=draw.random()),
    "copy": lambda draw: Death("copy", draw.randrange(WRITES), share=draw.random()),
    "rename": lambda draw: Death("rename", draw.randrange(WRITES), share=draw.random()),
    "any moment": lambda draw: Death("timer", share=draw.uniform(0.05, 0.95)),
}
TWICE = "twice"


def deaths(method: str, kind: str, number: int) -> Iterator[Death]:
    """Those of one case, the same on every machine: one, or two of any kinds."""
    draw = random.Random(f"{method}, {kind}, {number}")
    if kind != TWICE:
        yield KINDS[kind](draw)
        return
    yield KINDS[draw.choice(["start of the phase", "sparsify", "removal"])](draw)
    second = KINDS[draw.choice(["removal", "finetune", "write", "copy", "rename", "any moment"])](draw)
    yield replace(second, at=second.at if second.way == "hook" else second.at % _WRITES_LEFT)
