"""The whole-zoo sweep: prunes every timm architecture and writes down what happened.

    python -m tests.sweep.channels --shard 0/2 --out tests/sweep/channels.jsonl
    python -m tests.sweep.channels --table tests/sweep/channels.md --out tests/sweep/channels.jsonl
    python -m tests.sweep.channels --norm any --out tests/sweep/channels_any.jsonl --table tests/sweep/channels_any.md

``--norm batch`` is those with affine BatchNorm, smallest first, by random scores of scale factors; ``--norm any``
is all, the smallest of each family first, by the L1 norm of filters.

Each model runs in a worker process under a time and a memory bound, so a hang or a crash costs one row. Rows that are
already in the file are not run again (`--again failed` runs the failed ones again). Nothing is downloaded: weights are
random, with random scale factors and calibrated statistics.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing as mp
import os
import resource
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels import ChannelError, ChannelGraph, Pruned, prune_channels
from lightning_prune.channels.graph.vectors import kept_count
from tests.sweep.channels_table import RATIO, table
from tests.sweep.networks import build, by_family, is_norm, listing, train_step

Job = Callable[[str], dict[str, Any]]
"""Makes the row of a model of that name; never raises."""


def random_scores(model: nn.Module) -> dict[str, Tensor]:
    """A number for each channel of each batch norm."""
    return {
        path: torch.rand(m.num_features, generator=torch.Generator().manual_seed(i))
        for i, (path, m) in enumerate(model.named_modules())
        if is_norm(m)
    }


def scored_vectors(graph: ChannelGraph, norm: str) -> list[Tensor]:
    """The groups of the channels that are scored: of batch norms, or (any) of the rows of weights."""
    if norm == "any":
        return [dims[0] for name, dims in graph.axes.items() if 0 in dims and len(graph.shapes[name]) > 1]
    found = [graph.scale_ids(name) for name in graph.norms]
    return [ids for ids in found if ids is not None]


def record(done: Pruned, vectors: list[Tensor]) -> dict[str, Any]:
    """What a row says of a surgery. vectors: the group ids of the channels that count, int64 [channels] each."""
    reasons: dict[str, int] = {}
    for identity in (i for ids in vectors for i in ids[ids < 0].tolist()):
        for reason in {
            r.split(" at ")[0] + ":" + r.rpartition(":")[2] for r in done.graph.frozen_reasons[-1 - identity]
        }:
            reasons[reason] = reasons.get(reason, 0) + 1
    assert done.proof is not None
    return {
        "form": done.plan.form,
        "difference": done.proof.difference,
        "effect": done.proof.effect,
        "dtype": str(done.proof.dtype).removeprefix("torch."),
        "norm_channels": sum(map(len, vectors)),
        "frozen": sum(int((ids < 0).sum()) for ids in vectors),
        "removed": sum(len(ids) - kept_count(ids, done.keep) for ids in vectors),
        "after": sum(p.numel() for p in done.model.parameters()),
        "restored": done.restored,
        "reasons": [r for r, _ in sorted(reasons.items(), key=lambda i: -i[1])[:3]],
        "notes": list(done.notes),
    }


def failure(error: Exception) -> dict[str, str]:
    """The status of a row that ended in an exception, and what it says."""
    refused = isinstance(error, ChannelError) and "nothing would be removed" in str(error)
    return {"status": "not applicable" if refused else "failed", "error": f"{type(error).__name__}: {error}"[:600]}


def run_one(name: str, norm: str = "batch") -> dict[str, Any]:
    """Prunes one architecture; never raises."""
    row: dict[str, Any] = {"name": name}
    try:
        model, batch = build(name)
        row.update(parameters=sum(p.numel() for p in model.parameters()), size=batch.shape[-1])
        start = time.process_time()
        if norm == "any":
            done = prune_channels(model, batch, score="l1", ratio=RATIO)
        else:
            done = prune_channels(model, batch, scores=random_scores(model), ratio=RATIO)
        row["seconds"] = round(time.process_time() - start, 2)
        row |= record(done, scored_vectors(done.graph, norm))
        row["stuck"] = train_step(model, batch)
        if row["stuck"]:  # is that the surgery's doing, or does the dense model have such parameters too?
            del model
            row["stuck_dense"] = train_step(*build(name))
        row["status"] = "ok" if done.plan.form == "eager" else "ok as GraphModule"
    except Exception as error:
        row |= failure(error)
    return row


def worker(pipe: Connection, memory: int, job: Job) -> None:
    """Serves names until the pipe closes."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (memory << 20, memory << 20))
    while True:
        pipe.send(job(pipe.recv()) | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10})


class Worker:
    """A worker process that is replaced when it dies, hangs or has grown."""

    def __init__(self, memory: int, job: Job) -> None:
        self.memory, self.job, self.process = memory, job, None

    def run(self, name: str, seconds: int) -> dict[str, Any]:
        """Runs one model under the bounds."""
        if self.process is None:
            self.pipe, theirs = mp.Pipe()
            self.process = mp.get_context("spawn").Process(
                target=worker, args=(theirs, self.memory, self.job), daemon=True
            )
            self.process.start()
            theirs.close()
        try:
            self.pipe.send(name)
            if not self.pipe.poll(seconds):
                self.stop()
                return {"name": name, "status": "failed", "error": f"not finished after {seconds} s"}
            row = self.pipe.recv()
        except (EOFError, OSError):
            self.stop()
            return {"name": name, "status": "failed", "error": "the worker died (memory bound?)"}
        if row["peak_mib"] > 3000 or row["status"] == "failed":
            self.stop()
        return row

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = None


def sweep(
    doc: str, out: str, listing: Callable[[Path], list[dict[str, Any]]], job: Job, argv: list[str] | None = None,
    **words: str,
) -> None:  # fmt: skip
    """The command of a sweep.

    Args:
        doc: its help. out: the file of its rows, by default.
        listing: from the path of a cache to [{name, parameters}], in the order to run.
        job: makes a row of a name; never raises. argv: the command line. words: see `table`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th model, from the i-th on")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--again", choices=["failed", "all"], help="run rows of this kind again")
    parser.add_argument("--seconds", type=int, default=300, help="time bound for one model")
    parser.add_argument("--memory", type=int, default=12000, help="address space bound for one model, MiB")
    parser.add_argument("--table", type=Path, help="write the table to this file, run nothing")
    parser.add_argument("--note", default="", help="a sentence for the head of the table")
    args = parser.parse_args(argv)
    models = listing(args.out.with_suffix(".models.json"))
    rows: dict[str, dict[str, Any]] = {}
    if args.out.exists():
        for line in args.out.read_text().splitlines():
            row = json.loads(line)
            rows[row["name"]] = row
    if args.table:
        args.table.write_text(table(rows, models, args.note, **words))
        return
    index, number = (int(i) for i in args.shard.split("/"))
    names = args.models or [m["name"] for m in models][index::number]
    bound = Worker(args.memory, job)
    for name in names:
        known = rows.get(name)
        if known and not (args.again == "all" or (args.again == "failed" and known["status"] == "failed")):
            continue
        row = bound.run(name, args.seconds)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(row["status"], name, row.get("error", ""), flush=True)
    bound.stop()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--norm", choices=["batch", "any"], default="batch")
    args, rest = parser.parse_known_args()
    if args.norm == "batch":
        sweep(__doc__ or "", "tests/sweep/channels.jsonl", with_norms, run_one, rest)
    else:
        words = {
            "title": "Channel surgery on timm's architectures, with BatchNorm and without",
            "counted": "output channels of weights", "how": "by the L1 norm of filters",
            "command": "python -m tests.sweep.channels --norm any",
        }  # fmt: skip
        sweep(__doc__ or "", "tests/sweep/channels_any.jsonl", families, partial(run_one, norm="any"), rest, **words)


def with_norms(path: Path) -> list[dict[str, Any]]:
    """The architectures with affine BatchNorm, smallest first."""
    return [model for model in listing(path) if model["norms"]]


def families(path: Path) -> list[dict[str, Any]]:
    """All architectures, the smallest of each family first."""
    return by_family(listing(path))


if __name__ == "__main__":
    main()
