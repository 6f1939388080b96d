r"""Does mutual regularization pay on networks without BatchNorm, where it acts on gates?

MRTS by gates beside the Taylor score, whose channels go after the same epochs, from the same dense starts.

    python -m tests.benchmarks.scale_gates --root /usr/share/datasets/fashion-mnist --subset 1000 \
        --networks convnext-16px vit-16px --out tests/benchmarks/scale_gates.md
"""

from __future__ import annotations

from tests.benchmarks.bench.command import answer, arguments, grid


def main() -> None:
    args = arguments(__doc__, "scale_gates", ("MRTS, gates", "Taylor score"), (2,))
    answer(
        args, grid(args), lambda r: f"{r.network}, {r.compression:g}x fewer MACs", "network",
        "# Channels without BatchNorm", reference="MRTS, gates",
    )  # fmt: skip


if __name__ == "__main__":
    main()
