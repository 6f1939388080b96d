r"""How few epochs does a method need? Equal training of 1 to 16 epochs, two thirds of it for the phase that prunes.

    python -m tests.benchmarks.short_training --root /usr/share/datasets/fashion-mnist \
        --out tests/benchmarks/short_training.md
"""

from __future__ import annotations

from tests.benchmarks.bench.command import answer, arguments
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.runs import Run

SPARSIFY_AND_FINETUNE = ((2, 1), (4, 2), (8, 4))


def main() -> None:
    args = arguments(__doc__, "short_training", ["resnet20-14px"], ("LTP", "magnitude"))
    runs = [
        Run(network, method, compression, seed, args.subset, NETWORKS[network].epochs[0], sparsify, finetune)
        for network in args.networks
        for compression in args.compression
        for sparsify, finetune in SPARSIFY_AND_FINETUNE
        for method in args.methods
        for seed in args.seeds
    ]
    answer(
        args, runs, lambda r: f"{r.network}, {r.compression:g}x, {r.sparsify} + {r.finetune} epochs",
        "network, compression, training", "# Accuracy against epochs",
    )  # fmt: skip


if __name__ == "__main__":
    main()
