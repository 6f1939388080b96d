r"""What pruning sends between processes: bytes a step, at a selection and at the removal, beside what is expected.

    python -m tests.benchmarks.traffic --out tests/benchmarks/traffic.md

The collectives of torch.distributed are wrapped, and the bytes that this process hands to them are counted while a
callback of ours runs: gradients, which DDP and FSDP2 send with or without pruning, are not ours. One, two and three
processes on the CPU (gloo), the toy network of the tests.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lightning_prune import FPGMCallback, LTPCallback, MagnitudeCallback, MRTSCallback, ScorePruningCallback
from tests.benchmarks.bench.pipelines import publish
from tests.toy import Toy, samples

LAYERS, CHANNELS, STEPS = 3, 24, 16  # of the toy network and fit: weights, channels, steps that sparsify
COLLECTIVES = (
    "all_reduce", "broadcast", "reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor",
    "reduce_scatter", "gather", "scatter", "all_to_all",
)  # fmt: skip
METHODS: dict[str, Callable[..., Any]] = {
    "LTP": lambda: LTPCallback(target_sparsity=0.8, sparsify=2, recalibrate_batches=2),
    "LTP, held": lambda: LTPCallback(target_sparsity=0.8, gate="held", sparsify=2, recalibrate_batches=2),
    "Magnitude": lambda: MagnitudeCallback(target_sparsity=0.8, sparsify=2, recalibrate_batches=2),
    "MRTS": lambda: MRTSCallback(target_macs=0.5, warmup=0, sparsify=2, recalibrate_batches=2),
    "FPGM": lambda: FPGMCallback(target_macs=0.5, warmup=0, sparsify=2, recalibrate_batches=2),
    "Taylor": lambda: ScorePruningCallback("taylor", target_macs=0.5, warmup=0, sparsify=2, recalibrate_batches=2),
}
SHARDED = ("LTP", "LTP, held", "Magnitude")
Sent = dict[str, float]


class Sharded(Toy):
    """The toy network, its weights' rows on all processes."""

    def configure_model(self) -> None:
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Meter:
    """Bytes by what goes on; what is sent while nothing of ours does is not counted."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.doing: list[str] = []

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The collective, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.doing:
                # what goes out is the last tensor of those that name where to and what
                given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
                self.bytes[self.doing[-1]] += given[-1].numel() * given[-1].element_size()
                self.calls[self.doing[-1]] += 1
            return function(*args, **kwargs)

        return counted

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Count from here on."""
        homes = (torch.distributed, distributed_c10d)
        kept = [(home, name, getattr(home, name)) for home in homes for name in COLLECTIVES]
        try:
            for home, name, function in kept:
                setattr(home, name, self.wrap(function))
            yield
        finally:
            for home, name, function in kept:
                setattr(home, name, function)

    def watch(self, callback: Any, name: str, what: str) -> None:
        """Count what one of a callback's methods sends."""
        method = getattr(callback, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.doing.append(what)
            try:
                return method(*args, **kwargs)
            finally:
                self.doing.pop()

        setattr(callback, name, watched)


def measure(name: str, processes: int, sharded: bool, folder: Path) -> Sent:
    """Bytes of one process in a fit of three epochs of eight batches, two of them sparsifying."""
    torch.manual_seed(0)
    callback, meter = METHODS[name](), Meter()
    for hook in ("on_before_optimizer_step", "_after_step", "on_train_batch_start", "on_train_batch_end"):
        meter.watch(callback, hook, "steps")
    if hasattr(callback, "select"):
        meter.watch(callback, "select", "selections")
    if name in SHARDED:
        meter.watch(callback, "start", "thresholds")
        meter.watch(callback, "_refresh" if name.startswith("LTP") else "learn", "thresholds")
    meter.watch(callback, "remove", "removal")
    meter.watch(callback, "_calibrated", "BatchNorm statistics")
    strategy: Any = ModelParallelStrategy(processes, 1) if sharded else "ddp" if processes > 1 else "auto"
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=processes, strategy=strategy, callbacks=[callback],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0, limit_train_batches=8, default_root_dir=folder,
    )  # fmt: skip
    with meter.installed():
        trainer.fit(Sharded() if sharded else Toy(), DataLoader(samples(192), batch_size=8))
    assert callback.stage == "pruned"
    return {**meter.bytes, **{f"{what}, calls": n for what, n in meter.calls.items()}}


def run_group(processes: int, folder: Path) -> list[dict[str, Any]]:
    """What the first of some processes sent, for each method."""
    command = [sys.executable, "-m", "tests.benchmarks.traffic", "--inside", str(processes), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return [json.loads(line) for line in (folder / "sent.jsonl").read_text().splitlines()]


def inside(processes: int, folder: Path) -> None:
    """Run in each process of a group."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name in METHODS:
        for sharded in (False, True) if name in SHARDED and processes > 1 else (False,):
            sent = measure(name, processes, sharded, folder)
            if processes == 1 or torch.distributed.get_rank() == 0:
                line = {"method": name, "sharded": sharded, "processes": processes, **sent}
                with open(folder / "sent.jsonl", "a") as f:
                    f.write(json.dumps(line) + "\n")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def page(rows: list[dict[str, Any]]) -> str:
    """A row a method and number of processes."""
    parts = ("steps", "thresholds", "selections", "removal", "BatchNorm statistics")
    head = ["method", "processes", *(f"{p}, bytes (calls)" for p in parts)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        name = row["method"] + (", weights in shards" if row["sharded"] else "")
        cells = [f"{row[p]:,} ({row[f'{p}, calls']})" if row.get(p) else "0" for p in parts]
        lines.append("| " + " | ".join([name, str(row["processes"]), *cells]) + " |")
    return "\n".join([
        f"What one process hands to collectives for pruning, in a whole fit of the toy network: {LAYERS} layers, "
        f"{CHANNELS} BatchNorm channels, all of which may go, {STEPS} steps that sparsify. Gradients and gathered "
        "weights are not in it: they are sent with or without pruning.",
        "", *lines, "",
        f"Measured {datetime.date.today()} on the CPU (gloo), torch {torch.__version__}, "
        f"lightning {lightning.__version__}.",
    ]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--inside", nargs=2, metavar=("PROCESSES", "FOLDER"), help="run as one of a group")
    parser.add_argument("--out", type=Path, help="page to write")
    args = parser.parse_args()
    if args.inside:
        inside(int(args.inside[0]), Path(args.inside[1]))
        return
    rows = []
    for processes in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            rows += run_group(processes, Path(folder))
    text = page(sorted(rows, key=lambda row: (list(METHODS).index(row["method"]), row["sharded"], row["processes"])))
    publish(text, args.out)


if __name__ == "__main__":
    main()
