"""``lightning-prune predict``: classes and probabilities of the test data, into a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser

from lightning_prune.cli.evaluation import OPTIONS, EvaluateCLI
from lightning_prune.cli.mistakes import UserError

PREDICTIONS_FILE = "predictions.csv"

PAGE = (
    """\
usage: lightning-prune predict [FILE] [options]

Writes a line for each image of the test data, in their order: index (from 0), class (the most probable one, from 0),
and its probability.

  --out FILE                a CSV file; default predictions.csv, an existing one is replaced
"""
    + OPTIONS
    + """
  lightning-prune predict lightning_logs/version_0/pruned.safetensors --out digits.csv
"""
)


class PredictCLI(EvaluateCLI):
    """The command."""

    command = "predict"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--out", default=PREDICTIONS_FILE, help="the CSV file to write")

    def predict(self, **options: Any) -> None:
        """Predict, and write the file."""
        if self.trainer.world_size > 1:
            raise UserError(
                f"predict writes one file from one process, and there are {self.trainer.world_size}: give "
                "--trainer.devices 1."
            )
        batches = self.trainer.predict(**(options | {"return_predictions": True}))
        if not batches:
            raise UserError(f"{type(self.datamodule).__name__} has no test data to predict.")
        path, found = Path(self.config["predict"]["out"]), torch.cat(batches)  # type: ignore[arg-type]
        if found.ndim != 2:
            raise UserError(
                f"predict writes one class a sample, and {type(self.model.model).__name__} gives {tuple(found.shape)} "
                "probabilities. `lightning-prune test` gives a language model's bits per character."
            )
        count = write_predictions(path, found)
        print(f"saved {path}: {count:,} predictions")


def write_predictions(path: Path, probabilities: torch.Tensor) -> int:
    """Writes index, class and probability of each sample, of probabilities [N, classes]; returns N."""
    best, classes = probabilities.max(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["index", "class", "probability"])
        lines.writerows(
            (i, c, f"{p:.6f}") for i, (c, p) in enumerate(zip(classes.tolist(), best.tolist(), strict=True))
        )
    return len(classes)


def run(args: Sequence[str]) -> None:
    """Runs ``predict`` with these options."""
    PredictCLI(args)
