r"""What does knowledge distillation add to LTP, magnitude and MRTS, with a copy of the dense start as the teacher?

    python -m tests.benchmarks.distillation --root /usr/share/datasets/fashion-mnist \
        --out tests/benchmarks/distillation.md

Runs that `results/distillation.jsonl` holds are not trained again.
"""

from __future__ import annotations

import argparse

from tests.benchmarks.bench.command import answer, arguments, grid
from tests.benchmarks.bench.methods import KD

QUESTIONS = {"LTP": ("weights", 20.0), "magnitude": ("weights", 20.0), "MRTS": ("MACs", 10 / 3)}


def main() -> None:
    args = arguments(__doc__, "distillation", list(QUESTIONS), (), ("resnet20-narrow",))
    pages = []
    for method in args.methods:
        what, compression = QUESTIONS[method]
        each = argparse.Namespace(**{**vars(args), "out": None, "methods": [method, method + KD]})
        each.compression = args.compression or [compression]
        pages.append(
            answer(
                each, grid(each), lambda r, w=what: f"{r.network}, {r.compression:.3g}x fewer {w}", "network, budget",
                f"## {method}, with knowledge distillation and without", method + KD,
            )
        )  # fmt: skip
    if args.out is not None:
        args.out.write_text("# What distillation adds\n\n" + "\n".join(pages))


if __name__ == "__main__":
    main()
