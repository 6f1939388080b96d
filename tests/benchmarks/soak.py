r"""Thousands of steps under masks: memory stays flat, and so do what is logged and what a checkpoint holds.

    python -m tests.benchmarks.soak --steps 10000 --out tests/benchmarks/soak.md

The sparsify phase takes all of the steps but a few. Every hundredth part of the way is read what memory the process
has, what malloc has given out (tensors too), and how many blocks Python has. The slope of the last two over the second
half is what a step leaves behind; the first also grows as malloc's free memory falls into pieces.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import io
import logging
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_prune import LTPCallback, MRTSCallback
from tests.benchmarks.scale import memory
from tests.memory import malloc_in_use
from tests.toy import Toy, samples

METHODS: dict[str, Any] = {
    "LTP": lambda **phases: LTPCallback(target_sparsity=0.9, trail=[0.8, 0.5, 0.2, 0.1], **phases),
    "MRTS": lambda **phases: MRTSCallback(target_macs=0.5, **phases),
}
Numbers = dict[str, float]


class Sampler(lightning.Callback):
    """Reads the process's memory as the training goes."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.read: list[tuple[int, ...]] = []  # step, memory, malloc's bytes in use, Python's blocks

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            gc.collect()
            self.read.append((trainer.global_step, memory(), malloc_in_use(), sys.getallocatedblocks()))


def soak(name: str, steps: int, folder: Path) -> Numbers:
    """What a fit of that many steps leaves behind."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    callback = METHODS[name](warmup=0, sparsify=f"{steps - 80} steps", recalibrate_batches=4)
    sampler = Sampler(max(1, steps // 100))
    logger = CSVLogger(folder, name)
    sizes: list[int] = []

    class Sizes(lightning.Callback):
        """The size of a checkpoint's part that is the callback's."""

        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            if callback.stage == "soft":
                buffer = io.BytesIO()
                torch.save(callback.state_dict(), buffer)
                sizes.append(buffer.tell())

    epoch = 500  # steps; the 800 samples are the 64 of the toy data, over and over
    data = torch.utils.data.ConcatDataset([samples()] * (epoch * 8 // 64 + 1))
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=[callback, sampler, Sizes()], logger=logger,
        enable_checkpointing=True, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        num_sanity_val_steps=0, limit_train_batches=epoch, log_every_n_steps=50,
    )  # fmt: skip
    gc.freeze()  # what is imported: a collection then looks at what the fit makes
    start = time.process_time()
    trainer.fit(Toy(), DataLoader(data, batch_size=8, shuffle=True), DataLoader(samples(32, seed=1), 16))
    assert trainer.global_step == steps, f"{trainer.global_step} steps"
    assert callback.stage == "pruned"
    late = [read for read in sampler.read if steps // 2 <= read[0] <= steps - 80]
    slopes = [statistics.linear_regression([r[0] for r in late], [r[i] for r in late]).slope for i in (1, 2, 3)]
    return {
        "steps": steps, "seconds": time.process_time() - start,
        "slope": slopes[0], "in use": slopes[1], "blocks": slopes[2],
        "first": late[0][1] / 2**20, "last": late[-1][1] / 2**20,
        "rows": len(Path(logger.log_dir, "metrics.csv").read_text().splitlines()) - 1,
        "trail": len(callback.trail.entries) if getattr(callback, "trail", None) else 0,
        "least state": min(sizes), "largest state": max(sizes),
    }  # fmt: skip


def page(rows: dict[str, Numbers]) -> str:
    """The table."""
    head = [
        "method", "steps", "memory half-way, MiB", "at the end, MiB", "a step adds, bytes", "leaves in use, bytes",
        "leaves Python's blocks", "rows logged",
        "trail's checkpoints", "callback's state, KiB", "CPU, s",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, n in rows.items():
        cells = [
            name, f"{n['steps']:,.0f}", f"{n['first']:.1f}", f"{n['last']:.1f}", f"{n['slope']:+.0f}",
            f"{n['in use']:+.1f}", f"{n['blocks']:+.3f}",
            f"{n['rows']:.0f}", f"{n['trail']:.0f}",
            f"{n['least state'] / 1024:.1f} to {n['largest state'] / 1024:.1f}", f"{n['seconds']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([
        "A network of 1,288 weights trained under the masks for many steps, logged every 50 steps, validated and "
        "saved every 500. What a step adds and leaves is the slope over the second half of the sparsify phase: of the "
        "process's memory, of what malloc has given out and not got back (tensors too), and of the number of Python's "
        "blocks. Memory that grows where the other two do not is malloc's own, in pieces: no one holds it. A "
        "reading takes five blocks, every hundredth part of the way.",
        "", *lines, "",
        f"Measured {datetime.date.today()}, one thread, on a machine shared with other work; "
        f"torch {torch.__version__}, lightning {lightning.__version__}.",
    ]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, help="page to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows: dict[str, Numbers] = {}
    for name in args.methods:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = soak(name, args.steps, Path(folder))
        print(name, rows[name], flush=True)
    text = page(rows)
    print(text)
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
