r"""LTP to a share of sparse MACs beside LTP to a share of zeros, at equal MACs: what does it keep?

    python -m tests.benchmarks.sparse_macs --root /usr/share/datasets/fashion-mnist \
        --seeds 0 1 2 3 4 --out tests/benchmarks/sparse_macs.md

For each seed a run to zeros comes first, and the MACs that it leaves are the target of the other, from the same start
and on the same batches. Runs that `results/sparse_macs.jsonl` holds are not trained again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn

from lightning_prune import LTPCallback, sparsity_report
from lightning_prune.support.macs import macs_by_weight
from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.pipelines import publish, remembered, shared_arguments, stamps
from tests.benchmarks.bench.runs import Run, dense_start, fit
from tests.benchmarks.bench.table import signed

ZEROS, MACS = "by zeros", "by MACs"


@torch.no_grad()
def sparse_macs(network: nn.Module, pixels: int) -> float:
    """Share of the network's MACs that zeros leave."""
    weights = {n: p for n, p in network.named_parameters() if p.ndim > 1}
    with macs_by_weight(weights) as found:
        network.eval()(torch.zeros(1, 1, pixels, pixels))
    saved = sum(n * float((weights[name] == 0).double().mean()) for name, n in found.by_weight.items())
    return 1 - saved / found.total


def work(run: Run, macs: float | None, root: str, starts: Path) -> dict[str, Any]:
    """One run, to its compression or to a share of MACs."""
    settings = NETWORKS[run.network]
    start = dense_start(run, starts, root)
    lightning.seed_everything(run.seed, verbose=False)
    module = settings.build(settings.prune_lr)
    module.load_state_dict(start)
    target = {"target_compression": run.compression} if macs is None else {"target_macs": macs}
    callback = LTPCallback(**target, sparsify=run.sparsify)  # type: ignore[arg-type]
    accuracy, _ = fit(module, run, run.sparsify + run.finetune, run.seed + 100, root, [callback])
    left = sparse_macs(module, settings.image_size or 28)
    kept = 1 / sparsity_report(module).compression
    return {"accuracy": round(100 * accuracy, 2), "macs": round(left, 4), "kept": round(kept, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared_arguments(parser, RESULTS / "sparse_macs.jsonl", subset=2000)
    parser.add_argument("--network", default="resnet20-narrow", choices=list(NETWORKS))
    parser.add_argument("--compression", type=float, default=20)
    args = parser.parse_args()
    dense, sparsify, finetune = NETWORKS[args.network].epochs
    found: dict[str, dict[int, dict[str, Any]]] = {ZEROS: {}, MACS: {}}
    for seed in args.seeds:
        run = Run(args.network, "LTP", args.compression, seed, args.subset, dense, sparsify, finetune)
        macs: float | None = None
        for method, lines in found.items():
            key = {"method": method, "network": run.network, "compression": run.compression, "seed": seed}
            key |= {"subset": run.subset, "dense": dense, "sparsify": sparsify, "finetune": finetune}
            train = None if args.known else lambda r=run, m=macs: work(r, m, args.root, args.results.parent / "starts")
            line = remembered(args.results, key, train)
            if line is not None:
                lines[seed], macs = line, line["macs"]
    shared = sorted(found[ZEROS].keys() & found[MACS].keys())
    if not shared:
        raise SystemExit(f"{args.results} holds no pair of these runs: leave out --known to train them.")
    page = [
        "# LTP by MACs and by zeros, at equal sparse MACs",
        "",
        f"{args.network} on Fashion-MNIST, {args.subset} training images, {dense} + {sparsify} + {finetune} epochs, "
        f"mean of {len(shared)} seeds. The MACs are those that LTP leaves at {args.compression:g}x zeros, by seed.",
        "",
        "| LTP | MACs left | weights kept | test accuracy, % | above, by seed (95 %) |",
        "|---|---|---|---|---|",
    ]
    for method, lines in found.items():
        mean = {k: statistics.mean(lines[s][k] for s in shared) for k in ("macs", "kept", "accuracy")}
        above = signed([lines[s]["accuracy"] - found[ZEROS][s]["accuracy"] for s in shared]) if method == MACS else ""
        page.append(f"| {method} | {mean['macs']:.3f} | {mean['kept']:.3f} | {mean['accuracy']:.2f} | {above} |")
    page += ["", *stamps(line for lines in found.values() for line in lines.values())]
    publish("\n".join(page) + "\n", args.out)


if __name__ == "__main__":
    main()
