r"""Pruning from Scratch against pruning after a dense training, at equal MACs: accuracy, and what it cost.

    python -m tests.benchmarks.from_scratch --root /usr/share/datasets/fashion-mnist \
        --network resnet20-narrow --subset 2000 --seeds 0 1 --out tests/benchmarks/from_scratch.md

Network Slimming trains the dense network under its penalty and then as many epochs the compact one; Pruning from
Scratch searches on random weights and trains the fresh compact network over the same epochs, or over as many as make
the two cost the same. A network of random widths shows what the search is worth. Runs that `results/from_scratch.jsonl`
holds are not trained again.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from lightning_prune import NetworkSlimmingCallback, PruningFromScratchCallback, ScorePruningCallback, scratch_budget
from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.pipelines import publish, remembered, shared_arguments, stamps, trained
from tests.benchmarks.bench.table import interval

REFERENCE = "Network Slimming"


def plans(args: argparse.Namespace) -> dict[str, tuple[Any, int, int]]:
    """{method: (its callback, epochs of the dense network, epochs of the compact one)}."""
    n, share = args.epochs, args.macs
    longer = scratch_budget(1, share, n - args.search) + n  # what the dense training took, less the search
    search = {"target_macs": share, "sparsify": args.search, "gate_lr": args.gate_lr, "ratio": share**0.5}
    return {
        REFERENCE: (NetworkSlimmingCallback(target_macs=share, warmup=1, sparsify=n - 1), n, n),
        "Pruning from Scratch": (PruningFromScratchCallback(**search), args.search, n),
        "the same, at equal cost": (PruningFromScratchCallback(**search), args.search, longer),
        "random widths": (
            ScorePruningCallback("random", target_macs=share, warmup=0, sparsify=0, after="retrain"), 0, n
        ),
    }  # fmt: skip


def row(method: str, found: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]]) -> str:
    """One line of the table."""
    values = [line["accuracy"] for line in found.values()]
    shared = sorted(found.keys() & reference.keys())
    above, half = interval([found[s]["accuracy"] - reference[s]["accuracy"] for s in shared])
    error = f" ± {half:.2f}" if len(shared) > 1 else ""
    difference = "" if method == REFERENCE else f" ({above:+.2f}{error})"
    cost = statistics.mean(line["cost"] for line in found.values())
    some = next(iter(found.values()))
    return (
        f"| {method} | {len(found)} | {some['dense']} + {some['compact']} | {cost:.1f} | "
        f"{statistics.mean(line['macs'] for line in found.values()):.3f} | {statistics.mean(values):.2f}{difference} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared_arguments(parser, RESULTS / "from_scratch.jsonl", subset=4000)
    parser.add_argument("--network", default="resnet20-14px", choices=list(NETWORKS))
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=10, help="of the dense training, and of the compact network's")
    parser.add_argument("--search", type=int, default=2, help="epochs of the search on random weights")
    parser.add_argument("--gate-lr", type=float, default=0.05)
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ("network", "macs", "subset", "epochs", "search", "gate_lr")}

    def work(method: str, seed: int) -> dict[str, Any]:
        callback, dense, compact = plans(args)[method]
        _, accuracy = trained(args.network, seed, args.subset, args.root, dense + compact, [callback])
        macs = callback.numbers["macs"]
        return {"accuracy": accuracy, "macs": macs, "dense": dense, "compact": compact, "cost": dense + macs * compact}

    found: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in args.seeds:
        for method in plans(args):
            key = {"method": method, "seed": seed, **settings}
            line = remembered(args.results, key, None if args.known else lambda m=method, s=seed: work(m, s))
            if line is not None:
                found.setdefault(method, {})[seed] = line
    if REFERENCE not in found:
        raise SystemExit(f"{args.results} holds none of these runs: leave out --known to train them.")
    data = "the bundled digits" if NETWORKS[args.network].bundled else "Fashion-MNIST"
    lines = [
        "# Pruning from Scratch beside pruning after a dense training",
        "",
        f"Test accuracy in per cent on {data}, {args.subset} training images, {args.network}, mean over seeds; in "
        f"brackets how far above {REFERENCE}, paired by seed, with the 95 % interval. Cost in epochs of the dense "
        f"network, MACs counted alone. Gates: ratio {args.macs**0.5:.2f}, Adam at {args.gate_lr:g}.",
        "",
        "| method | seeds | epochs, dense + compact | cost | MACs left | accuracy |",
        "|---|---|---|---|---|---|",
        *(row(method, by_seed, found[REFERENCE]) for method, by_seed in found.items()),
        "",
        *stamps(line for by_seed in found.values() for line in by_seed.values()),
    ]
    publish("\n".join(lines) + "\n", args.out)


if __name__ == "__main__":
    main()
