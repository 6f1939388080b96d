r"""Does a method win by its learning rate alone? Each with one, two and four times the network's, from one dense start.

    python -m tests.benchmarks.learning_rates --root /usr/share/datasets/fashion-mnist \
        --out tests/benchmarks/learning_rates.md

Runs are kept with those of `accuracy`, which has them at the network's own learning rate.
"""

from __future__ import annotations

from tests.benchmarks.accuracy import EPOCHS, SEEDS
from tests.benchmarks.bench.command import answer, arguments, grid

NETWORKS = ("resnet20-14px", "mobilenetv2-32px", "mixnet_s-32px")
METHODS = ("LTP", "magnitude", "STR", "ST-3", "Taylor")
TIMES = (1.0, 2.0, 4.0)


def main() -> None:
    args = arguments(__doc__, "accuracy", METHODS, (20, 50), NETWORKS, SEEDS)
    answer(
        args, grid(args, [{**EPOCHS, "lr": t} for t in TIMES]), lambda r: f"{r.network}, {r.compression:g}x, {r.lr:g}",
        "network, compression, times its learning rate", "# Accuracy against the learning rate",
    )  # fmt: skip


if __name__ == "__main__":
    main()
