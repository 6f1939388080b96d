"""Does learning which rank-one components stay pay, at equal parameters?

    python -m tests.benchmarks.flop --out tests/benchmarks/flop.md

FLOP against truncated singular value decomposition, hard-concrete gates at a fixed price (plain L0) and gradual
magnitude pruning, on a language model of characters (bits per character) and on a small ViT on the bundled digits
(accuracy): from one dense start a seed, over the same epochs. Runs that
`results/flop.jsonl` holds are not trained again.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import lightning
from torch import nn

from lightning_prune import FLOPCallback, MagnitudeCallback, PruningCallback, SVDCallback, TimmClassifier
from lightning_prune.callbacks.step import Step
from lightning_prune.factors import FactorUnits
from lightning_prune.support.network import find_network
from lightning_prune.zoo.data import DigitsDataModule
from tests.benchmarks.bench.table import interval
from tests.benchmarks.characters import Characters, loaders

RESULTS = Path(__file__).parent / "results" / "flop.jsonl"
LAYERS = ["blocks.*"]  # what may become smaller, of both networks
PRICE = 1.0  # of all weights, in units of the loss: plain L0


class PlainL0(FLOPCallback):
    """The same gates at one price from the beginning to the end; the target is met by the removal alone."""

    def before_step(self, units: FactorUnits, step: Step) -> None:
        self._price.fill_(-PRICE)


def weights_left(share: float, module: nn.Module) -> MagnitudeCallback:
    """As many non-zero parameters as the others have in all, which is kind to magnitude: zeros need an index too."""
    prunable = sum(p.numel() for n, p in module.named_parameters() if ".blocks." in f".{n}" and p.ndim > 1)
    dense = sum(p.numel() for p in module.parameters())
    sparsity = (1 - share) * dense / prunable
    return MagnitudeCallback(target_sparsity=sparsity, feedback=1.0, include=LAYERS, **PHASES)


PHASES: dict[str, Any] = {"warmup": 0, "sparsify": 0.6, "recalibrate_batches": 0}
METHODS: dict[str, Callable[[float, nn.Module], PruningCallback | None]] = {
    "FLOP": lambda share, _: FLOPCallback(target_params=share, include=LAYERS, **PHASES),
    "SVD": lambda share, _: SVDCallback(target_params=share, include=LAYERS, **PHASES),
    "plain L0": lambda share, _: PlainL0(target_params=share, include=LAYERS, **PHASES),
    "magnitude": weights_left,
    "dense": lambda share, _: None,
}


NOTES = (
    "In brackets: how much better FLOP is than the method, paired by seed, with a 95 % interval; below 0 FLOP lost.",
    "FLOP, SVD and plain L0 leave two small dense layers of each. Magnitude leaves as many *non-zero* parameters at",
    "the shapes of the dense network. `dense` is the start, trained on for as long. All sparsify for 60 % of the",
    "epochs and finetune for the rest, in `blocks.*`. The text is that of Python's help topics (`pydoc_data`), and",
    "changes with Python's version.",
)


class Task(NamedTuple):
    """A network, its data, and the epochs of the dense training and of the pruning."""

    build: Callable[[], lightning.LightningModule]
    data: Callable[[int], dict[str, Any]]
    epochs: tuple[int, int]
    shares: tuple[float, ...]
    metric: str
    higher: bool


def _vit() -> TimmClassifier:
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 3, "num_heads": 4}
    return TimmClassifier("vit_tiny_patch16_224", model_kwargs=sizes, lr=2e-3)


def _windows(characters: int) -> Callable[[int], dict[str, Any]]:
    def data(seed: int) -> dict[str, Any]:
        train, test = loaders(characters, seed)
        return {"train_dataloaders": train, "test": test}

    return data


def _digits(seed: int) -> dict[str, Any]:
    return {"datamodule": DigitsDataModule(image_size=8, batch_size=64, val_split=0.0, seed=seed)}


TASKS = {
    "characters": Task(Characters, _windows(150_000), (3, 4), (0.3,), "bits", False),
    "digits ViT": Task(_vit, _digits, (8, 8), (0.2,), "test/acc", True),
    "smoke": Task(lambda: Characters(16, 1, 2), _windows(8_000), (1, 2), (0.7,), "bits", False),
}


class Run(NamedTuple):
    """One training."""

    task: str
    method: str
    share: float
    seed: int


def grid(tasks: Iterable[str], seeds: Iterable[int]) -> list[Run]:
    """Every method at every share and seed; the dense network, trained on for as long, once a seed."""
    runs = [Run(t, m, s, seed) for t in tasks for seed in seeds for s in TASKS[t].shares for m in METHODS]
    return list(dict.fromkeys(run if run.method != "dense" else run._replace(share=1.0) for run in runs))


def train(run: Run, starts: dict[tuple[str, int], dict[str, Any]]) -> dict[str, float]:
    """The metric and the share of parameters that are left and not zero; keeps dense starts."""
    task = TASKS[run.task]
    clock = time.process_time()
    key = run.task, run.seed
    if key not in starts:
        lightning.seed_everything(run.seed, verbose=False)
        module = task.build()
        _fit(module, task, task.epochs[0], run.seed, [])
        starts[key] = copy.deepcopy(module.state_dict())
    lightning.seed_everything(run.seed, verbose=False)
    module = task.build()
    module.load_state_dict(starts[key])
    network = find_network(module)
    dense = sum(p.numel() for p in network.parameters())
    callback = METHODS[run.method](run.share, network)
    value = _fit(module, task, task.epochs[1], run.seed + 100, [callback] if callback else [])
    left = sum(int(p.count_nonzero()) if p.ndim > 1 else p.numel() for p in network.parameters())
    return {"value": value, "left": round(left / dense, 4), "cpu_seconds": round(time.process_time() - clock, 1)}


def _fit(module: lightning.LightningModule, task: Task, epochs: int, seed: int, callbacks: list[Any]) -> float:
    given = task.data(seed)
    test = given.pop("test", None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=epochs, callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, **given)
        where = {"dataloaders": test} if test is not None else given
        return float(trainer.test(module, **where, verbose=False)[0][task.metric])


def known(file: Path) -> dict[Run, dict[str, float]]:
    """The runs that a file of results holds."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {Run(**row["run"]): row["result"] for row in map(json.loads, lines)}


def run_all(runs: Iterable[Run], file: Path) -> dict[Run, dict[str, float]]:
    """Trains what the file does not hold, a line each."""
    results, starts = known(file), dict[tuple[str, int], dict[str, Any]]()
    for run in runs:
        if run not in results:
            results[run] = train(run, starts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as lines:
                lines.write(json.dumps({"run": run._asdict(), "result": results[run]}) + "\n")
            print(run, results[run], flush=True)
    return {run: results[run] for run in runs}


def page(results: dict[Run, dict[str, float]]) -> list[str]:
    """Markdown: a row a task and share, a column a method; in brackets how much better FLOP is, paired by seed."""
    names = [m for m in METHODS if any(run.method == m for run in results)]
    lines = ["| network, parameters left | seeds | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 2)]
    for name, share in dict.fromkeys((run.task, run.share) for run in results if run.method != "dense"):
        task, scale = TASKS[name], 100 if TASKS[name].higher else 1
        values = {
            m: {r.seed: scale * v["value"] for r, v in results.items()
                if (r.task, r.method) == (name, m) and r.share in (share, 1.0)} for m in names
        }  # fmt: skip
        unit = "accuracy in %" if task.higher else "bits per character, lower is better"
        cells = [_cell(values[m], values["FLOP"], task.higher, m == "FLOP") for m in names]
        lines.append(f"| {name}, {share:g} ({unit}) | {len(values['FLOP'])} | " + " | ".join(cells) + " |")
    return lines


def _cell(values: dict[int, float], flop: dict[int, float], higher: bool, own: bool) -> str:
    mean = f"{statistics.mean(values.values()):.3f}"
    if own:
        return f"**{mean}**"
    better, half = interval([(1 if higher else -1) * (flop[s] - values[s]) for s in sorted(values)])
    return f"{mean} ({better:+.3f} ± {half:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["characters", "digits ViT"], choices=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--known", action="store_true", help="write the page from the runs that are there; train none")
    parser.add_argument("--out", type=Path, help="page to write")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    runs = grid(args.tasks, args.seeds)
    found = known(args.results)
    results = {run: found[run] for run in runs if run in found} if args.known else run_all(runs, args.results)
    text = "\n".join(["# FLOP at equal parameters", "", *page(results), "", *NOTES])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
