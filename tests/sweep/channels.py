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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels import ChannelError, ChannelGraph, prune_channels
from lightning_prune.channels.graph.graph import kept_count
from tests.sweep.channels_table import RATIO, table
from tests.sweep.networks import build, by_family, is_norm, listing, train_step


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


def run_one(name: str, norm: str) -> dict[str, Any]:
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
        vectors = scored_vectors(done.graph, norm)
        total, frozen = sum(map(len, vectors)), sum(int((ids < 0).sum()) for ids in vectors)
        reasons: dict[str, int] = {}
        for identity in torch.cat([ids[ids < 0] for ids in vectors]).tolist():
            for reason in {
                r.split(" at ")[0] + ":" + r.rpartition(":")[2] for r in done.graph.frozen_reasons[-1 - identity]
            }:
                reasons[reason] = reasons.get(reason, 0) + 1
        assert done.proof is not None
        row.update(
            form=done.plan.form,
            difference=done.proof.difference,
            effect=done.proof.effect,
            dtype=str(done.proof.dtype).removeprefix("torch."),
            norm_channels=total,
            frozen=frozen,
            removed=total - sum(kept_count(ids, done.keep) for ids in vectors),
            after=sum(p.numel() for p in model.parameters()),
            restored=done.restored,
            reasons=[r for r, _ in sorted(reasons.items(), key=lambda i: -i[1])[:3]],
            notes=list(done.notes),
        )
        row["stuck"] = train_step(model, batch)
        if row["stuck"]:  # is that the surgery's doing, or does the dense model have such parameters too?
            del model
            row["stuck_dense"] = train_step(*build(name))
        row["status"] = "ok" if done.plan.form == "eager" else "ok as GraphModule"
    except ChannelError as error:
        nothing = "nothing would be removed" in str(error)
        row.update(status="not applicable" if nothing else "failed", error=f"{type(error).__name__}: {error}"[:600])
    except Exception as error:
        row.update(status="failed", error=f"{type(error).__name__}: {error}"[:600])
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return row


def worker(pipe: Connection, memory: int, norm: str) -> None:
    """Serves names until the pipe closes."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (memory << 20, memory << 20))
    while True:
        pipe.send(run_one(pipe.recv(), norm))


class Worker:
    """A worker process that is replaced when it dies, hangs or has grown."""

    def __init__(self, memory: int, norm: str) -> None:
        self.memory, self.norm, self.process = memory, norm, None

    def run(self, name: str, seconds: int) -> dict[str, Any]:
        """Runs one model under the bounds."""
        if self.process is None:
            self.pipe, theirs = mp.Pipe()
            self.process = mp.get_context("spawn").Process(
                target=worker, args=(theirs, self.memory, self.norm), daemon=True
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


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norm", choices=["batch", "any"], default="batch", help="which architectures and score")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th model, from the i-th on")
    parser.add_argument("--out", type=Path, default=Path("tests/sweep/channels.jsonl"))
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--again", choices=["failed", "all"], help="run rows of this kind again")
    parser.add_argument("--seconds", type=int, default=300, help="time bound for one model")
    parser.add_argument("--memory", type=int, default=12000, help="address space bound for one model, MiB")
    parser.add_argument("--table", type=Path, help="write the table to this file, run nothing")
    parser.add_argument("--note", default="", help="a sentence for the head of the table")
    args = parser.parse_args()
    models = listing(args.out.with_suffix(".models.json"))
    models = by_family(models) if args.norm == "any" else [m for m in models if m["norms"]]
    rows: dict[str, dict[str, Any]] = {}
    if args.out.exists():
        for line in args.out.read_text().splitlines():
            row = json.loads(line)
            rows[row["name"]] = row
    if args.table:
        args.table.write_text(table(rows, models, args.norm, args.note))
        return
    index, number = (int(i) for i in args.shard.split("/"))
    names = args.models or [m["name"] for m in models][index::number]
    bound = Worker(args.memory, args.norm)
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


if __name__ == "__main__":
    main()
