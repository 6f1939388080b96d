"""Runs of the bench: each is trained once and remembered as one JSON line, so that a stopped bench goes on.

A dense start is trained once for each (network, data, epochs, seed) and shared by all methods; from it on, all see
the same batches in the same order.
"""

from __future__ import annotations

import copy
import datetime
import fcntl
import hashlib
import json
import logging
import multiprocessing
import subprocess
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import timm
import torch

from lightning_prune import TimmClassifier, sparsity_report
from lightning_prune.errors import DivergenceError
from lightning_prune.support.batchnorm import fresh_statistics
from lightning_prune.support.modes import mode
from lightning_prune.zoo.data.module import ImageDataModule
from tests.benchmarks.bench.methods import callbacks
from tests.benchmarks.bench.networks import NETWORKS


@dataclass(frozen=True)
class Run:
    """One training from one dense start.

    Attributes:
        network, method: names in `NETWORKS` and of `methods.names`; method "dense" trains the dense network on.
        compression: prunable weights / kept ones; of methods that remove channels, MACs / those that are left.
        seed: of initialisation, batches and the validation split.
        subset: training images; 0: all that are not held out.
        dense, sparsify, finetune: epochs of the start, of the phase that prunes, and after the prune.
        scales: spread of random factors on layers before a BatchNorm, in powers of ten (same function); 0: none.
        lr: factor on the network's ``prune_lr``.
    """

    network: str
    method: str
    compression: float
    seed: int
    subset: int = 4000
    dense: int = 10
    sparsify: int = 8
    finetune: int = 4
    scales: float = 0.0
    lr: float = 1.0


def known(file: Path) -> dict[Run, dict[str, Any]]:
    """Results by run, of those that the file holds."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {Run(**line["run"]): line for line in lines}


def run_all(runs: Iterable[Run], file: Path, root: str, jobs: int) -> dict[Run, dict[str, Any]]:
    """Results of all runs; those that the file does not hold are trained, ``jobs`` at a time, one thread each.

    With 0 jobs none is trained, and the missing ones are left out.
    """
    runs = list(dict.fromkeys(runs))
    work = [(run, str(file), root) for run in runs if run not in known(file)] if jobs else []
    if jobs > 1 and work:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            for _ in pool.imap_unordered(_remember, work, chunksize=1):
                pass
    else:
        for item in work:
            _remember(item)
    results = known(file)
    return {run: results[run] for run in runs if run in results}


def _remember(item: tuple[Run, str, str]) -> None:
    run, file, root = item
    torch.set_num_threads(1)
    result = _result(run, Path(file), root)
    line = {"run": asdict(run), **result, **circumstances()}
    with Locked(Path(file)), open(file, "a") as f:
        f.write(json.dumps(line) + "\n")
    print(f"{run}: {100 * result['accuracy']:.2f}", flush=True)


def _result(run: Run, file: Path, root: str) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    start = dense_start(run, file.parent / "starts", root)
    lightning.seed_everything(run.seed, verbose=False)
    module = NETWORKS[run.network].build(NETWORKS[run.network].prune_lr * run.lr)
    module.load_state_dict(start)
    if run.scales:
        unlike_scales_(module, run.scales, run.seed)
    made = callbacks(run.method, run.compression, run.sparsify)
    clock = time.process_time()
    accuracy, as_trained = fit(module, run, run.sparsify + run.finetune, run.seed + 100, root, made)
    report = sparsity_report(module)
    keeps = [round(1 - layer.sparsity, 4) for layer in report.layers]
    return {
        "accuracy": accuracy, "as_trained": as_trained, "compression": round(report.compression, 3), "keeps": keeps,
        "macs": next((round(each.numbers["macs"], 4) for each in made if hasattr(each, "numbers")), 1.0),
        "cpu_seconds": round(time.process_time() - clock),
    }  # fmt: skip


def dense_start(run: Run, folder: Path, root: str) -> dict[str, Any]:
    """State of the dense network, trained if it was not yet."""
    name = f"{run.network}-{run.subset}-{run.dense}-{run.seed}"
    path = folder / f"{hashlib.sha1(name.encode()).hexdigest()[:8]}-{name}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    with Locked(path):
        if not path.exists():
            lightning.seed_everything(run.seed, verbose=False)
            network = NETWORKS[run.network]
            module = network.build(network.lr)
            if network.weights is not None:
                network.weights(module.model)
            accuracy, _ = fit(module, run, run.dense, run.seed, root, [])
            print(f"{name}: dense {100 * accuracy:.2f}", flush=True)
            torch.save(copy.deepcopy(module.state_dict()), path)
    return dict(torch.load(path, weights_only=True))


def fit(
    module: TimmClassifier, run: Run, epochs: int, seed: int, root: str, callbacks: list[Any]
) -> tuple[float, float]:
    """Accuracy on the test images after that many epochs: with BatchNorm statistics of 20 batches, and as trained.

    A training that diverges ends there, at chance.
    """
    data = NETWORKS[run.network].data(root, run.subset, seed)
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="auto",
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=10, num_sanity_val_steps=0,
        limit_val_batches=0,
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=data)
    except DivergenceError as error:
        print(error, flush=True)

    def accuracy() -> float:
        return float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])

    as_trained = accuracy()
    _restate(module, data)
    return accuracy(), as_trained


@torch.no_grad()
def _restate(module: TimmClassifier, data: ImageDataModule, batches: int = 20) -> None:
    """Running averages lag; where channels are constant, as pruned ones are, BatchNorm multiplies that by 1/√ε."""
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    with mode(module, False), fresh_statistics(norms):
        for images, _ in islice(data.train_dataloader(), batches if norms else 0):
            module(images)


def unlike_scales_(module: torch.nn.Module, spread: float, seed: int) -> None:
    """Multiply convolutions that a BatchNorm follows by random factors, and what the norm has seen: same function.

    Factors are log-uniform in ``10^±spread``. The norm's ε is negligible beside the variances here.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = list(module.modules())
    convolutions = [m for m in layers if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in layers if isinstance(m, torch.nn.BatchNorm2d)]
    for conv, norm in zip(convolutions, norms, strict=True):
        factor = float(10 ** (spread * (2 * torch.rand((), generator=generator) - 1)))
        with torch.no_grad():
            conv.weight.mul_(factor)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.mul_(factor)
            norm.running_var.mul_(factor**2)


def circumstances() -> dict[str, str]:
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": str(datetime.date.today()),
        "revision": revision.stdout.strip(),
        "versions": f"torch {torch.__version__}, lightning {lightning.__version__}, timm {timm.__version__}",
    }


class Locked:
    """A lock file beside a path, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")

    def __enter__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        self.file.close()
