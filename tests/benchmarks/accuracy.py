"""Which unstructured method keeps most accuracy, at equal budget, epochs, batches and dense start?

    python -m tests.benchmarks.accuracy --root /usr/share/datasets/fashion-mnist --out tests/benchmarks/accuracy.md

Runs that `results/accuracy.jsonl` holds are not trained again.
"""

from __future__ import annotations

from tests.benchmarks.bench.command import answer, arguments, grid
from tests.benchmarks.bench.methods import METHODS


def main() -> None:
    args = arguments(__doc__, "accuracy", list(METHODS), (20, 50))
    runs = grid(args)
    answer(
        args, runs, lambda r: f"{r.network}, {r.compression:g}x", "network, compression",
        "# Accuracy after unstructured pruning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
