"""What the tests of the command line share: a small job, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from lightning_prune.cli.app import main
from lightning_prune.zoo.data import DigitsDataModule

SMALL = [
    "--trainer.max_epochs=3",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
    "--model.model_name=test_resnet",
]
PHASES = ["--prune.warmup=1", "--prune.sparsify=1"]


def fit(path: Path, *arguments: str, phases: list[str] = PHASES) -> None:
    """Runs the job; later arguments win."""
    main(["fit", f"--trainer.default_root_dir={path}", *SMALL, *phases, *arguments])


def rows(out: str) -> dict[str, str]:
    """The lines of the table, by their first column."""
    return {line.split("  ")[0]: line for line in out.splitlines() if "  " in line}


class ColourDigits(DigitsDataModule):
    """The digits, as if in colour."""

    in_chans = 3


class Interrupt(Callback):
    """Ctrl-C before a batch.

    Args:
        at: batches that are trained first.
    """

    def __init__(self, at: int) -> None:
        self.left = at

    def on_train_batch_start(self, *args: Any) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
