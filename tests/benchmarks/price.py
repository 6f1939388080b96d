"""LTP without any schedule: one price λ, no target, and a trail. Beside it gradual magnitude, told LTP's share.

    python -m tests.benchmarks.price --root /usr/share/datasets/fashion-mnist --out tests/benchmarks/price.md

Both train for equal epochs from one dense start, on the same batches; what LTP keeps is the target of the other. The
trail's stations are checkpoints of LTP's run, read back, pruned and tested as they are, without a finetune. Runs that
`results/price.jsonl` holds are not trained again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import lightning
from lightning import Trainer

from lightning_prune import LTPCallback, MagnitudeCallback, sparsity_report
from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.pipelines import publish, remembered, shared_arguments, stamps
from tests.benchmarks.bench.runs import Run, dense_start
from tests.benchmarks.bench.table import signed

STATIONS = (0.5, 0.3333, 0.2, 0.1, 0.05)
Line = dict[str, Any]


def work(run: Run, price: float, kept: float | None, root: str, starts: Path) -> Line:
    """One run: LTP at that price, or magnitude to that share."""
    settings = NETWORKS[run.network]
    start = dense_start(run, starts, root)
    lightning.seed_everything(run.seed, verbose=False)
    module = settings.build(settings.prune_lr)
    module.load_state_dict(start)
    data = settings.data(root, run.subset, run.seed + 100)
    with tempfile.TemporaryDirectory() as folder:
        trail: dict[str, Any] = {"trail": list(STATIONS), "trail_dir": folder}
        callback = (
            LTPCallback(lam=price, sparsify=run.sparsify, **trail)
            if kept is None
            else MagnitudeCallback(target_sparsity=1 - kept, sparsify=run.sparsify)
        )
        trainer = Trainer(
            max_epochs=run.sparsify + run.finetune, callbacks=[callback], logger=False, enable_checkpointing=False,
            accelerator="auto", enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            val_check_interval=0.25, limit_val_batches=1,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        found = {"accuracy": _tested(trainer, module, data), "kept": round(1 / sparsity_report(module).compression, 4)}
        passed = callback.trail.entries if callback.trail is not None else []
        soft = [entry for entry in passed if entry.phase == "sparsify"]
        stations = [[round(e.kept, 4), _tested(trainer, e.prune(module), data)] for e in soft]
    return found | {"stations": stations}


def _tested(trainer: Trainer, module: Any, data: Any) -> float:
    return round(100 * float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"]), 2)


def page(found: dict[float, dict[str, dict[int, Line]]], args: argparse.Namespace) -> str:
    """The table by price, and the stations of each price's first seed."""
    lines = [
        "# LTP by its price alone",
        "",
        f"{args.network} on Fashion-MNIST, {args.subset} training images, mean over seeds. Gradual magnitude is told "
        "the share that LTP has found; last, how far LTP is above, paired by seed, with the 95 % interval.",
        "",
        "| λ | seeds | kept | LTP | gradual magnitude | LTP above |",
        "|---|---|---|---|---|---|",
    ]
    for price, runs in found.items():
        both = sorted(runs["LTP"].keys() & runs["magnitude"].keys())
        if both:
            kept, own, other = (
                statistics.mean(runs[m][s][k] for s in both)
                for m, k in (("LTP", "kept"), ("LTP", "accuracy"), ("magnitude", "accuracy"))
            )
            above = signed([runs["LTP"][s]["accuracy"] - runs["magnitude"][s]["accuracy"] for s in both])
            lines.append(f"| {price:g} | {len(both)} | {kept:.1%} | {own:.2f} | {other:.2f} | {above} |")
    lines += [
        "",
        "What one run's trail holds on the way, pruned and tested without a finetune (kept: accuracy):",
        "",
        "| λ | seed | stations |",
        "|---|---|---|",
    ]
    for price, runs in found.items():
        for seed, line in sorted(runs["LTP"].items()):
            stations = ", ".join(f"{kept:.1%}: {accuracy:.2f}" for kept, accuracy in line["stations"])
            lines.append(f"| {price:g} | {seed} | {stations or '–'} |")
    lines += ["", *stamps(line for runs in found.values() for of in runs.values() for line in of.values())]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared_arguments(parser, RESULTS / "price.jsonl", subset=4000)
    parser.add_argument("--network", default="resnet20-14px", choices=list(NETWORKS))
    parser.add_argument("--prices", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    args = parser.parse_args()
    dense, sparsify, finetune = NETWORKS[args.network].epochs
    found: dict[float, dict[str, dict[int, Line]]] = {}
    for price in args.prices:
        runs = found.setdefault(price, {"LTP": {}, "magnitude": {}})
        for seed in args.seeds:
            run = Run(args.network, "LTP", 1, seed, args.subset, dense, sparsify, finetune)
            kept: float | None = None
            for method, lines in runs.items():
                key = {"method": method, "network": run.network, "price": price, "seed": seed, "subset": run.subset}
                key |= {"dense": dense, "sparsify": sparsify, "finetune": finetune}

                def train(run: Run = run, price: float = price, kept: float | None = kept) -> Line:
                    return work(run, price, kept, args.root, args.results.parent / "starts")

                line = remembered(args.results, key, None if args.known else train)
                if line is not None:
                    lines[seed], kept = line, line["kept"]
    publish(page(found, args), args.out)


if __name__ == "__main__":
    main()
