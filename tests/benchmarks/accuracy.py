"""Which unstructured method keeps most accuracy, at equal budget, epochs, batches and dense start?

    python -m tests.benchmarks.accuracy --root /usr/share/datasets/fashion-mnist --out tests/benchmarks/accuracy.md

Runs that `results/accuracy.jsonl` holds are not trained again.
"""

from __future__ import annotations

from tests.benchmarks.bench.command import answer, arguments
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.runs import Run

METHODS = ("LTP", "magnitude", "magnitude, feedback", "one-shot")


def main() -> None:
    args = arguments(__doc__, "accuracy", ["resnet20-14px"], METHODS)
    runs = [
        Run(network, method, compression, seed, args.subset, *NETWORKS[network].epochs)
        for network in args.networks
        for compression in args.compression
        for method in args.methods
        for seed in args.seeds
    ]
    answer(
        args, runs, lambda r: f"{r.network}, {r.compression:g}x", "network, compression",
        "# Accuracy after unstructured pruning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
