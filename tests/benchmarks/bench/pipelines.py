"""Pipelines whose steps are trainings of their own: remembered as one JSON line each, as runs are."""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch

from lightning_prune import TimmClassifier
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.runs import Locked, circumstances


def remembered(file: Path, key: dict[str, Any], work: Callable[[], dict[str, Any]] | None) -> dict[str, Any] | None:
    """The line of a file that has this ``run``; what ``work`` returns is added where there is none. None: no work."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for line in lines:
        if line["run"] == key:
            return line  # type: ignore[no-any-return]
    if work is None:
        return None
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning_prune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    clock = time.process_time()
    found = {"run": key, **work(), "cpu_seconds": round(time.process_time() - clock), **circumstances()}
    with Locked(file), open(file, "a") as f:
        f.write(json.dumps(found) + "\n")
    print(json.dumps(found), flush=True)
    return found


def remembered_each(
    args: argparse.Namespace, keys: Mapping[str, dict[str, Any]], work: Callable[[str], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The lines of several keys, by name, as `kept_arguments` says; those that are not there are left out if known."""
    found = {
        name: remembered(args.results, key, None if args.known else partial(work, name)) for name, key in keys.items()
    }
    return {name: line for name, line in found.items() if line is not None}


def shared_arguments(parser: argparse.ArgumentParser, results: Path, subset: int) -> None:
    """Adds what every question takes: the data, the seeds, where lines are kept, and the page."""
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST's files, or the one above it")
    parser.add_argument("--subset", type=int, default=subset, help="training images; 0: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    kept_arguments(parser, results)


def kept_arguments(parser: argparse.ArgumentParser, results: Path) -> None:
    """Adds where lines are kept, and the page."""
    parser.add_argument("--results", type=Path, default=results, help="where runs are remembered")
    parser.add_argument("--known", action="store_true", help="write the page from the runs that are there; make none")
    parser.add_argument("--out", type=Path, help="page to write")


def stamps(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """When and with what lines were measured, a sentence for each circumstance."""
    found = sorted({(line["date"], line["revision"], line["versions"]) for line in lines})
    return [f"Measured {date}, revision {revision}, {versions}." for date, revision, versions in found]


def publish(page: str, file: Path | None) -> None:
    """Prints a page, and writes it where it is wanted."""
    print(page)
    if file is not None:
        file.write_text(page)


def quiet_trainer(epochs: int, callbacks: Any = ()) -> lightning.Trainer:
    """A Trainer that shows and saves nothing, and validates on nothing."""
    return lightning.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False, accelerator="auto",
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip


def trained(
    network: str, seed: int, subset: int, root: str, epochs: int, callbacks: Any = ()
) -> tuple[TimmClassifier, float]:
    """A network after that many epochs, from random weights, and its test accuracy in per cent."""
    lightning.seed_everything(seed, verbose=False)
    settings = NETWORKS[network]
    module = settings.build(settings.lr)
    trainer, data = quiet_trainer(epochs, callbacks), settings.data(root, subset, seed)
    trainer.fit(module, datamodule=data)
    return module, 100 * float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])
