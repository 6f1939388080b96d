"""The whole-zoo sweep: prunes every timm architecture with affine BatchNorm and writes down what happened.

    python -m tests.sweep.channels --shard 0/2 --out tests/sweep/channels.jsonl
    python -m tests.sweep.channels --table tests/sweep/channels.md --out tests/sweep/channels.jsonl

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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from lightning_prune.channels import ChannelError, Pruned, prune_channels
from lightning_prune.channels.graph.graph import kept_count
from tests.sweep.channels_table import RATIO, table

SIZES = (96, 128, 160, 192, 224, 256, 288, 320, 384)
LARGE = 320

Job = Callable[[str], dict[str, Any]]
"""Makes the row of a model of that name; never raises."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm with scale factors."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine


def listing(path: Path) -> list[dict[str, Any]]:
    """[{name, parameters, norms}] of all architectures, smallest first; written once, as it takes minutes."""
    if path.exists():
        return json.loads(path.read_text())
    rows = []
    for name in timm.list_models():
        with torch.device("meta"):
            model = timm.create_model(name)
        norms = [m for m in model.modules() if is_norm(m)]
        if any(not isinstance(m, nn.BatchNorm1d) for m in norms):
            rows.append({"name": name, "parameters": sum(p.numel() for p in model.parameters()), "norms": len(norms)})
    rows.sort(key=lambda r: (r["parameters"], r["name"]))
    path.write_text(json.dumps(rows, indent=0))
    return rows


def randomise(model: nn.Module, batch: torch.Tensor) -> None:
    """Random scale factors and shifts, statistics of one batch: every channel matters."""
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in model.modules() if is_norm(m)]
    for norm in norms:
        norm.weight.data = torch.rand(norm.weight.shape, generator=generator) + 0.5
        norm.bias.data = 0.2 * torch.randn(norm.bias.shape, generator=generator)
        norm.momentum = 1.0
    with torch.no_grad():
        for module in model.modules():
            module.training = True
        model(batch)
    for norm in norms:
        norm.momentum = 0.1
        norm.running_var.clamp_(min=1e-3)
    for module in model.modules():
        module.training = False


def train_step(model: nn.Module, batch: torch.Tensor) -> int:
    """One step of SGD in train mode; returns how many parameters got no gradient or did not move."""
    for module in model.modules():
        module.training = True
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    out = model(batch)
    leaves = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
    generator = torch.Generator().manual_seed(2)
    sum((t * torch.randn(t.shape, generator=generator)).sum() for t in leaves).backward()
    stuck = 0
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.grad is None:
                stuck += 1
                continue
            p -= p.grad / p.grad.abs().max().clamp(min=1e-20)
            stuck += torch.equal(before[name], p)
    return stuck


def record(done: Pruned, vectors: list[torch.Tensor]) -> dict[str, Any]:
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


def run_one(name: str) -> dict[str, Any]:
    """Prunes one architecture; never raises."""
    row: dict[str, Any] = {"name": name}
    batch = None
    try:
        torch.manual_seed(0)
        model = timm.create_model(name)
        row["parameters"] = sum(p.numel() for p in model.parameters())
        config = model.pretrained_cfg
        native = config["input_size"]
        sizes = [native[-1]] if config.get("fixed_input_size") else [*(s for s in SIZES if s < native[-1]), native[-1]]
        for size in sizes:
            batch = torch.randn(2 if size <= LARGE else 1, native[0], size, size)  # for want of memory
            try:
                randomise(model, batch)
                break
            except Exception as error:
                if size == sizes[-1]:
                    raise RuntimeError(f"the dense model itself does not run at {sizes}: {error}") from error
        row["size"] = batch.shape[-1]
        scores = {
            path: torch.rand(m.num_features, generator=torch.Generator().manual_seed(i))
            for i, (path, m) in enumerate(model.named_modules())
            if is_norm(m)
        }
        start = time.process_time()
        done = prune_channels(model, batch, scores=scores, ratio=RATIO)
        row["seconds"] = round(time.process_time() - start, 2)
        ids = (done.graph.scale_ids(path) for path in done.graph.norms)
        row |= record(done, [v for v in ids if v is not None])
        row["stuck"] = train_step(model, batch)
        if row["stuck"]:  # is that the surgery's doing, or does the dense model have such parameters too?
            del model
            torch.manual_seed(0)
            dense = timm.create_model(name)
            randomise(dense, torch.randn_like(batch))
            row["stuck_dense"] = train_step(dense, batch)
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


def sweep(doc: str, out: str, listing: Callable[[Path], list[dict[str, Any]]], job: Job, **words: str) -> None:
    """The command of a sweep.

    Args:
        doc: its help. out: the file of its rows, by default.
        listing: from the path of a cache to [{name, parameters}], in the order to run.
        job: makes a row of a name; never raises. words: see `table`.
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
    args = parser.parse_args()
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


if __name__ == "__main__":
    sweep(__doc__ or "", "tests/sweep/channels.jsonl", listing, run_one)
