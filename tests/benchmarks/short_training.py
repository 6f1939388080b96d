r"""How few epochs does a method need? Equal training of 3 to 12 epochs, two thirds of it for the phase that prunes.

    python -m tests.benchmarks.short_training --root /usr/share/datasets/fashion-mnist \
        --out tests/benchmarks/short_training.md
"""

from __future__ import annotations

from tests.benchmarks.bench.command import answer, arguments, grid

SPARSIFY_AND_FINETUNE = ((2, 1), (4, 2), (8, 4))


def main() -> None:
    args = arguments(__doc__, "short_training", ("LTP", "magnitude"), (20,))
    runs = grid(args, [{"sparsify": s, "finetune": f} for s, f in SPARSIFY_AND_FINETUNE])
    answer(
        args, runs, lambda r: f"{r.network}, {r.compression:g}x, {r.sparsify} + {r.finetune} epochs",
        "network, compression, training", "# Accuracy against epochs",
    )  # fmt: skip


if __name__ == "__main__":
    main()
