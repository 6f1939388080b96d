r"""Does a method hold when layers have unlike scales? Weights before a BatchNorm are multiplied by random factors.

The function of the dense network stays the same; only what a weight's size means changes from layer to layer.

    python -m tests.benchmarks.unlike_scales --root /usr/share/datasets/fashion-mnist \
        --out tests/benchmarks/unlike_scales.md
"""

from __future__ import annotations

from tests.benchmarks.bench.command import answer, arguments, grid

SCALES = (0.0, 0.5)


def main() -> None:
    args = arguments(__doc__, "unlike_scales", ("LTP", "magnitude", "magnitude, feedback"), (20,))
    runs = grid(args, [{"scales": scales} for scales in SCALES])
    answer(
        args, runs, lambda r: f"{r.network}, {r.compression:g}x, 10^±{r.scales:g}", "network, compression, factors",
        "# Layers of unlike scale",
    )  # fmt: skip


if __name__ == "__main__":
    main()
