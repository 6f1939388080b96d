r"""Does a method hold when layers have unlike scales? Weights before a BatchNorm are multiplied by random factors.

The function of the dense network stays the same; only what a weight's size means changes from layer to layer.

    python -m tests.benchmarks.unlike_scales --root /usr/share/datasets/fashion-mnist \
        --out tests/benchmarks/unlike_scales.md
"""

from __future__ import annotations

from tests.benchmarks.bench.command import answer, arguments
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.runs import Run

SCALES = (0.0, 0.5)


def main() -> None:
    args = arguments(__doc__, "unlike_scales", ["resnet20-14px"], ("LTP", "magnitude"))
    runs = [
        Run(network, method, compression, seed, args.subset, *NETWORKS[network].epochs, scales=scales)
        for network in args.networks
        for compression in args.compression
        for scales in SCALES
        for method in args.methods
        for seed in args.seeds
    ]
    answer(
        args, runs, lambda r: f"{r.network}, {r.compression:g}x, 10^±{r.scales:g}", "network, compression, factors",
        "# Layers of unlike scale",
    )  # fmt: skip


if __name__ == "__main__":
    main()
