r"""Which unstructured method keeps most accuracy, at equal budget, epochs, batches and dense start?

    python -m tests.benchmarks.accuracy --root /usr/share/datasets/fashion-mnist --out tests/benchmarks/accuracy.md
    python -m tests.benchmarks.accuracy --root /usr/share/datasets/fashion-mnist --subset 0 --compression 20 50 \
        --networks resnet20-14px --methods LTP magnitude --seeds 0 --out tests/benchmarks/accuracy_full_data.md

Runs that `results/accuracy.jsonl` holds are not trained again, and with ``--known`` none is. With the page go its
picture and the tables in the README.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_prune.plots.figure import new_figure
from tests.benchmarks.bench.command import answer, arguments, grid
from tests.benchmarks.bench.goals import goals
from tests.benchmarks.bench.runs import Run, run_all
from tests.benchmarks.bench.table import compare, overall

NETWORKS = (
    "resnet20-14px", "mobilenetv2-32px", "efficientnet_b0-32px", "mixnet_s-32px", "efficientnet_b0-64px",
    "mixnet_s-64px", "lite0-pretrained", "vit-16px", "convnext-16px",
)  # fmt: skip
COMPRESSIONS = (3, 5, 10, 20, 50)
METHODS = ("LTP", "magnitude", "magnitude, feedback", "one-shot", "STR", "ST-3", "Taylor")
SEEDS = (0, 1, 2, 3, 4)
EPOCHS = {"dense": 10, "sparsify": 8, "finetune": 4}  # of all networks
REPOSITORY = Path(__file__).parents[2]
PAGE, PICTURE, README = (
    REPOSITORY / f for f in ("tests/benchmarks/accuracy.md", "docs/images/accuracy.png", "README.md")
)
_UNLIKE = 0.03  # of accuracy
BEGIN, END = "<!-- accuracy -->", "<!-- /accuracy -->"


def questions(args: argparse.Namespace) -> list[Run]:
    """The dense networks, trained on for as long, and the grid of methods."""
    return [
        *grid(argparse.Namespace(**{**vars(args), "methods": ["dense"], "compression": [1]}), [EPOCHS]),
        *grid(args, [EPOCHS]),
    ]


def beside_dense(results: Mapping[Run, Mapping[str, Any]]) -> dict[Run, Mapping[str, Any]]:
    """The results, the dense networks' repeated at each compression of theirs."""
    shown: dict[Run, Mapping[str, Any]] = {}
    for run, result in results.items():
        others = {r.compression for r in results if r.network == run.network and r.method != "dense"}
        for compression in sorted(others) if run.method == "dense" else [run.compression]:
            shown[replace(run, compression=compression)] = result
    return shown


def table(results: Mapping[Run, Mapping[str, Any]]) -> list[str]:
    """Markdown: a row a network and compression, a column a method."""
    return compare(beside_dense(results), _row, "LTP", "network, compression")


def summary(results: Mapping[Run, Mapping[str, Any]]) -> list[str]:
    """Markdown: a row a compression, over the networks, if there are some; and what of LTP's goals is reached."""
    shown = beside_dense(results)
    over_networks = [
        "How far LTP is above each over all networks, a network one difference whatever its seeds: mean, 95 % interval "
        "over the networks, the least, and of how many networks where some have not run.",
        "",
        *overall(shown, lambda run: f"{run.compression:g}x", lambda run: run.network, "LTP", "compression"),
        "",
    ]
    return [
        *(over_networks if len({run.network for run in results}) > 1 else []),
        "Goals that were set for LTP: in how many rows its mean over seeds reaches them, and where it does not how far "
        "it and the dense network, trained on for as long, are above the other method:",
        "",
        *goals(shown),
    ]


def folded(title: str, lines: Sequence[str]) -> list[str]:
    """Lines that show when the reader clicks on the title."""
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "", "</details>"]


def as_trained(results: Mapping[Run, Mapping[str, Any]]) -> str:
    """A sentence on what the re-estimate of statistics before the test is worth."""
    both = {run: (r["accuracy"], r["as_trained"]) for run, r in results.items() if "as_trained" in r}
    unlike = [
        f"{_row(run)}, {run.method}, seed {run.seed}: {100 * trained:.2f} for {100 * fresh:.2f}"
        for run, (fresh, trained) in both.items()
        if abs(fresh - trained) > _UNLIKE
    ]
    return (
        "BatchNorm statistics are re-estimated on 20 training batches before the test. Without it "
        f"{len(unlike) or 'none'} of {len(both)} runs end more than {100 * _UNLIKE:.0f} points away"
        + (f" ({'; '.join(unlike)})." if unlike else ".")
    )


def placed(text: str, lines: list[str]) -> str:
    """The text with the lines between its two marks."""
    before, rest = text.split(BEGIN)
    return "\n".join([before + BEGIN, "", *lines, "", END + rest.split(END)[1]])


def draw(results: Mapping[Run, Mapping[str, Any]], file: Path) -> None:
    """Accuracy against compression, a panel a network, a line a method."""
    networks = list(dict.fromkeys(run.network for run in results))
    figure = new_figure(3.2 * len(networks), 3.4)
    for ax, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        for method in dict.fromkeys(run.method for run in results):
            points: dict[float, list[float]] = {}
            for run, result in results.items():
                if (run.network, run.method) == (network, method):
                    points.setdefault(run.compression, []).append(100 * result["accuracy"])
            ax.plot(
                sorted(points), [statistics.mean(points[x]) for x in sorted(points)], "o-", markersize=3,
                label=method, linewidth=2 if method == "LTP" else 1,
            )  # fmt: skip
        ax.set_xscale("log")
        ax.set_xticks(COMPRESSIONS, [f"{x}x" for x in COMPRESSIONS])
        ax.minorticks_off()
        ax.set(title=network, xlabel="compression")
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=80)


def _epochs() -> str:
    phases = "Epochs: {dense} of the dense start, then {sparsify} that sparsify and {finetune} of finetune."
    return phases.format(**EPOCHS) + " Dense: the start, trained on for as many."


def _row(run: Run) -> str:
    return f"{run.network}, {run.compression:g}x"


def main() -> None:
    args = arguments(__doc__, "accuracy", METHODS, COMPRESSIONS, NETWORKS, SEEDS)
    runs = questions(args)
    publish = args.out is not None and args.out.resolve() == PAGE
    picture = f"![Accuracy against compression, by network and method](../../{PICTURE.relative_to(REPOSITORY)})"
    results = run_all(runs, args.results, args.root, 0 if args.known else args.jobs)
    answer(
        args, runs, _row, "network, compression", "# Accuracy after unstructured pruning",
        foot=["\n".join(summary(results)), _epochs(), as_trained(results), *([picture] if publish else [])],
        table=table,
    )  # fmt: skip
    if publish:
        draw(beside_dense(results), PICTURE)
        shown = [*summary(results), "", *folded("Every network and compression", table(results))]
        README.write_text(placed(README.read_text(), shown))


if __name__ == "__main__":
    main()
