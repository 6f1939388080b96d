"""The whole-zoo sweep: prunes every timm architecture and writes down what happened.

    python -m tests.sweep.channels --shard 0/2 --out tests/sweep/channels.jsonl
    python -m tests.sweep.channels --table tests/sweep/channels.md --out tests/sweep/channels.jsonl
    python -m tests.sweep.channels --norm none --parameters 700
    python -m tests.sweep.channels --norm none --table tests/sweep/channels_none.md

``--norm batch`` is those with affine BatchNorm, by random scores of scale factors; ``--norm none`` is those without, by
the L1 norm of filters. The smallest come first. ``--norm none --short`` runs what is left with two blocks a stage.

Each model runs in a worker process under a bound on its CPU time and its memory, so a hang or a crash costs one row.
Rows that are already in the file are not run again (`--again failed` runs the failed ones again, `--again unfinished`
those that met a bound). Nothing is downloaded: weights are random, with random scale factors and calibrated statistics.
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

from lightning_prune.channels import ChannelGraph, Pruned, prune_channels
from lightning_prune.channels.graph.modes import OUTPUT
from lightning_prune.channels.graph.vectors import kept_count
from lightning_prune.errors import PlanError
from tests.sweep.channels_cost import memory
from tests.sweep.channels_table import RATIO, table
from tests.sweep.limit import OutOfTime, cpu_limit
from tests.sweep.networks import ROUNDING, build, is_norm, listing, untrained

Job = Callable[[str], dict[str, Any]]
"""Makes the row of a model of that name; never raises."""
UNFINISHED = "unfinished"
"""The status of a model that met a bound on time or memory: neither done nor failed."""
PATIENCE = 20
"""Of the seconds of CPU time that a model may take, so many times are waited for on the clock."""
GROWN = 3000
"""MiB that a worker process may hold on to between models; to start another takes seconds."""


def random_scores(model: nn.Module) -> dict[str, Tensor]:
    """A number for each channel of each batch norm."""
    return {
        path: torch.rand(m.num_features, generator=torch.Generator().manual_seed(i))
        for i, (path, m) in enumerate(model.named_modules())
        if is_norm(m)
    }


def scored_vectors(graph: ChannelGraph, norm: str) -> list[Tensor]:
    """The group ids of the channels that are scored, int64 [channels] each: of batch norms, or (none) of weights."""
    if norm == "none":
        return rows_of_weights(graph)
    found = [graph.scale_ids(name) for name in graph.norms]
    return [ids for ids in found if ids is not None]


def rows_of_weights(graph: ChannelGraph) -> list[Tensor]:
    """The group ids of the output channels of all weights, int64 [channels] each; not those the network gives."""
    found = []
    for name, dim, ids in graph.each():
        if dim == 0 and len(graph.shapes[name]) > 1:
            reasons = [graph.frozen_reasons[-1 - i] for i in ids.unique().tolist() if i < 0]
            if not reasons or any(r != (OUTPUT,) for r in reasons) or bool((ids >= 0).any()):
                found.append(ids)
    return found


def record(done: Pruned, vectors: list[Tensor]) -> dict[str, Any]:
    """What a row says of a surgery. vectors: the group ids of the channels that count, int64 [channels] each."""
    reasons: dict[str, int] = {}
    frozen = torch.cat([ids[ids < 0] for ids in vectors]).unique(return_counts=True)
    for identity, number in zip(*(v.tolist() for v in frozen), strict=True):
        for reason in {
            r.split(" at ")[0] + ":" + r.rpartition(":")[2] for r in done.graph.frozen_reasons[-1 - identity]
        }:
            reasons[reason] = reasons.get(reason, 0) + number
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
    status = "failed"
    if isinstance(error, PlanError) and "nothing would be removed" in str(error):
        status = "not applicable"
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        status = UNFINISHED
    return {"status": status, "error": f"{type(error).__name__}: {error}"[:600]}


def trained(model: nn.Module, batch: Tensor, dense: Callable[[], nn.Module]) -> dict[str, Any]:
    """What a row says of a training step after the surgery; failed if a parameter does not train that did before."""
    stuck = untrained(model, batch)
    if not stuck:
        return {"stuck": 0}
    before = untrained(dense(), batch, ROUNDING)
    row: dict[str, Any] = {"stuck": len(stuck), "stuck_dense": len(before)}
    if lost := sorted(stuck - before):
        row |= {"status": "failed", "error": f"{', '.join(lost)[:300]}: trained before, not after"}
    return row


def verdict(done: Pruned) -> str:
    """The status of a row whose surgery went through."""
    ok = "ok" if done.plan.form == "eager" else "ok as GraphModule"
    return ok if done.graph.options.norms == "keep" else f"{ok} with norms='exact'"


def prune(model: nn.Module, batch: Tensor, norm: str) -> Pruned:
    """Prunes a model; one that the defaults refuse for its norms, with `norms="exact"`."""
    if norm == "batch":
        return prune_channels(model, batch, scores=random_scores(model), ratio=RATIO)
    try:
        return prune_channels(model, batch, score="l1", ratio=RATIO)
    except PlanError as error:
        if "norms='exact'" not in str(error):
            raise
        return prune_channels(model, batch, score="l1", ratio=RATIO, norms="exact")


def run_one(name: str, norm: str = "batch", short: bool = False) -> dict[str, Any]:
    """Prunes one architecture, or what it is with two blocks a stage; never raises."""
    row: dict[str, Any] = {"name": name} | ({"short": True} if short else {})
    try:
        model, batch = build(name, short)
        row.update(parameters=sum(p.numel() for p in model.parameters()), size=batch.shape[-1])
        start = time.process_time()
        done = prune(model, batch, norm)
        row["seconds"] = round(time.process_time() - start, 2)
        row |= record(done, scored_vectors(done.graph, norm))
        row["status"] = verdict(done)
        row |= trained(model, batch, lambda: build(name, short)[0])
    except Exception as error:
        row |= failure(error)
    return row


def bounded(job: Job, name: str, seconds: int) -> dict[str, Any]:
    """The row of a model, under the bound on CPU time."""
    try:
        with cpu_limit(seconds):
            return job(name)
    except OutOfTime:
        return {"name": name, "status": UNFINISHED, "error": f"not finished after {seconds} CPU s"}


def worker(pipe: Connection, bound: int, seconds: int, job: Job) -> None:
    """Serves names until the pipe closes."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (bound << 20, bound << 20))
    while True:
        row = bounded(job, pipe.recv(), seconds)
        row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        pipe.send((row, memory("VmRSS")))


class Worker:
    """A worker process that is replaced when it dies, hangs or has grown."""

    def __init__(self, memory: int, seconds: int, job: Job) -> None:
        self.memory, self.seconds, self.job, self.process = memory, seconds, job, None

    def run(self, name: str) -> dict[str, Any]:
        """Runs one model under the bounds."""
        if self.process is None:
            self.pipe, theirs = mp.Pipe()
            self.process = mp.get_context("spawn").Process(
                target=worker, args=(theirs, self.memory, self.seconds, self.job), daemon=True
            )
            self.process.start()
            theirs.close()
        try:
            self.pipe.send(name)
            if not self.pipe.poll(PATIENCE * self.seconds):
                self.stop()
                return {"name": name, "status": "failed", "error": f"hung for {PATIENCE * self.seconds} s"}
            row, grown = self.pipe.recv()
        except (EOFError, OSError):
            self.stop()
            return {"name": name, "status": UNFINISHED, "error": "the worker died (memory bound?)"}
        if grown > GROWN or row["status"] in ("failed", UNFINISHED):
            self.stop()
        return row

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = None


def sweep(
    doc: str, out: str, listing: Callable[[], list[dict[str, Any]]], job: Job, argv: list[str] | None = None,
    **words: str,
) -> None:  # fmt: skip
    """The command of a sweep.

    Args:
        doc: its help. out: the file of its rows, by default.
        listing: gives [{name, parameters}], in the order to run.
        job: makes a row of a name; never raises. argv: the command line. words: see `table`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th model, from the i-th on")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--again", choices=["failed", UNFINISHED, "all"], help="run rows of this kind again")
    parser.add_argument("--seconds", type=int, default=300, help="bound on the CPU time of one model")
    parser.add_argument("--memory", type=int, default=12000, help="address space bound for one model, MiB")
    parser.add_argument("--parameters", type=float, default=float("inf"), help="only models of so many millions")
    parser.add_argument("--table", type=Path, help="write the table to this file, run nothing")
    parser.add_argument("--note", default="", help="a sentence for the head of the table")
    args = parser.parse_args(argv)
    models = listing()
    rows: dict[str, dict[str, Any]] = {}
    if args.out.exists():
        for line in args.out.read_text().splitlines():
            row = json.loads(line)
            rows[row["name"]] = row
    if args.table:
        args.table.write_text(table(rows, models, args.note, **words))
        return
    index, number = (int(i) for i in args.shard.split("/"))
    names = args.models or [m["name"] for m in models if m["parameters"] <= args.parameters * 1e6][index::number]
    bound = Worker(args.memory, args.seconds, job)
    for name in names:
        known = rows.get(name)
        if known and args.again not in ("all", known["status"]):
            continue
        row = bound.run(name)
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(row["status"], name, row.get("error", ""), flush=True)
    bound.stop()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--norm", choices=["batch", "none"], default="batch")
    parser.add_argument("--short", action="store_true", help="of two blocks a stage: for what memory does not hold")
    args, rest = parser.parse_known_args()
    if args.norm == "batch":
        sweep(__doc__ or "", "tests/sweep/channels.jsonl", partial(of_norm, True), run_one, rest)
    else:
        words = {
            "title": "Channel surgery on every timm architecture without BatchNorm",
            "counted": "output channels of weights", "how": "by the L1 norm of filters",
            "command": "python -m tests.sweep.channels --norm none",
        }  # fmt: skip
        job = partial(run_one, norm="none", short=args.short)
        sweep(__doc__ or "", "tests/sweep/channels_none.jsonl", partial(of_norm, False), job, rest, **words)


def of_norm(batch: bool) -> list[dict[str, Any]]:
    """The architectures with affine BatchNorm, or those without, smallest first."""
    return [model for model in listing() if bool(model["norms"]) == batch]


if __name__ == "__main__":
    main()
