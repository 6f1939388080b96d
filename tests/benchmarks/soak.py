r"""Thousands of steps under masks: memory stays flat, and so do what is logged and what a checkpoint holds.

    python -m tests.benchmarks.soak --out tests/benchmarks/soak.md --image docs/images/soak.png

A method's run is remembered as a line of the results, so that a stopped command goes on. The plot needs matplotlib. The
sparsify phase takes all of the steps but a few. Every hundredth part of the way is read what memory the process
has, what malloc has given out (tensors too), and how many blocks Python has. The slope of the last two over the second
half is what a step leaves behind; the first also grows as malloc's free memory falls into pieces.
"""

from __future__ import annotations

import argparse
import gc
import io
import statistics
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_prune import (
    FLOPCallback,
    LTPCallback,
    MagnitudeCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    ST3Callback,
    TASCallback,
)
from lightning_prune.plots.figure import new_figure
from tests.benchmarks.bench.pipelines import kept_arguments, publish, remembered_each, stamps
from tests.benchmarks.scale import memory
from tests.memory import malloc_in_use
from tests.toy import Toy, samples

METHODS: dict[str, Any] = {
    "LTP": lambda **phases: LTPCallback(target_sparsity=0.9, trail=[0.8, 0.5, 0.2, 0.1], **phases),
    "MRTS": partial(MRTSCallback, target_macs=0.5),
    "magnitude": partial(MagnitudeCallback, target_sparsity=0.9),
    "ST-3": partial(ST3Callback, target_sparsity=0.9),
    "Slimming": partial(NetworkSlimmingCallback, target_macs=0.5),
    "TAS": partial(TASCallback, target_macs=0.5),
    "FLOP": partial(FLOPCallback, target_params=0.5),
}
RESULTS = Path(__file__).parent / "results" / "soak.jsonl"
AFTER = 80  # steps after the removal
Numbers = dict[str, Any]


class Sampler(lightning.Callback):
    """Reads the process's memory as the training goes."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.read: list[tuple[int, ...]] = []  # step, memory, malloc's bytes in use, Python's blocks

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            gc.collect()
            self.read.append((trainer.global_step, memory(), malloc_in_use(), sys.getallocatedblocks()))


def soak(name: str, steps: int) -> Numbers:
    """What a fit of that many steps leaves behind."""
    with tempfile.TemporaryDirectory() as folder:
        return soak_in(Path(folder), name, steps)


def soak_in(folder: Path, name: str, steps: int) -> Numbers:
    """The same, with logs and checkpoints in a folder."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    callback = METHODS[name](warmup=0, sparsify=f"{steps - AFTER} steps", recalibrate_batches=4)
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
    trainer.fit(Toy(), DataLoader(data, batch_size=8, shuffle=True), DataLoader(samples(32, seed=1), 16))
    assert trainer.global_step == steps, f"{trainer.global_step} steps"
    assert callback.stage == "pruned"
    late = [read for read in sampler.read if steps // 2 <= read[0] <= steps - AFTER]
    slopes = [statistics.linear_regression([r[0] for r in late], [r[i] for r in late]).slope for i in (1, 2, 3)]
    return {
        "slope": slopes[0], "in use": slopes[1], "blocks": slopes[2],
        "first": late[0][1] / 2**20, "last": late[-1][1] / 2**20,
        "rows": len(Path(logger.log_dir, "metrics.csv").read_text().splitlines()) - 1,
        "trail": len(callback.trail.entries) if getattr(callback, "trail", None) else 0,
        "least state": min(sizes), "largest state": max(sizes), "readings": sampler.read,
    }  # fmt: skip


def draw(lines: Mapping[str, Numbers], file: Path) -> None:
    """What the process had in memory, and what malloc had given out, over the steps, less the first reading's."""
    figure = new_figure(9, 3)
    for ax, column, title in zip(figure.subplots(1, 2), (1, 2), ("memory of the process", "given out"), strict=True):
        for name, line in lines.items():
            (_, *first), *_ = read = line["readings"]
            ax.plot([r[0] for r in read], [(r[column] - first[column - 1]) / 2**20 for r in read], label=name)
        ax.set(xlabel="step", ylabel="MiB since the first reading", title=title)
        ax.legend(fontsize=7)
    figure.savefig(file, dpi=80)


def page(lines: Mapping[str, Numbers], image: bool) -> str:
    """The table."""
    head = [
        "method", "steps", "memory half-way, MiB", "at the end, MiB", "a step adds, bytes", "leaves in use, bytes",
        "leaves Python's blocks", "rows logged",
        "trail's checkpoints", "callback's state, KiB", "CPU, s",
    ]  # fmt: skip
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, n in lines.items():
        cells = [
            name, f"{n['run']['steps']:,.0f}", f"{n['first']:.1f}", f"{n['last']:.1f}", f"{n['slope']:+.0f}",
            f"{n['in use']:+.1f}", f"{n['blocks']:+.3f}",
            f"{n['rows']:.0f}", f"{n['trail']:.0f}",
            f"{n['least state'] / 1024:.1f} to {n['largest state'] / 1024:.1f}", f"{n['cpu_seconds']:.0f}",
        ]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    picture = ["![Memory over the steps, by method](../../docs/images/soak.png)", ""]
    return "\n".join([
        "A network of 1,288 weights trained under the masks for many steps, logged every 50 steps, validated and "
        "saved every 500. What a step adds and leaves is the slope over the second half of the sparsify phase: of the "
        "process's memory, of what malloc has given out and not got back (tensors too), and of the number of Python's "
        "blocks. Memory that grows where the other two do not is malloc's own, in pieces: no one holds it; it falls "
        "where the system is short of memory and takes back what is not used. "
        "A reading takes five blocks, every hundredth part of the way. The last one follows the removal.",
        "", *rows, "", *(picture if image else ()),
        *stamps(lines.values()), "One thread, on a machine shared with other work.",
    ]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    kept_arguments(parser, RESULTS)
    parser.add_argument("--image", type=Path, help="plot to draw")
    args = parser.parse_args()
    keys = {name: {"method": name, "steps": args.steps} for name in args.methods}
    lines = remembered_each(args, keys, partial(soak, steps=args.steps))
    if args.image is not None:
        draw(lines, args.image)
    publish(page(lines, args.image is not None), args.out)


if __name__ == "__main__":
    main()
