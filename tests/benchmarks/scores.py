r"""Every score and every method of channels on one page: right after the removal, and after finetune.

    python -m tests.benchmarks.scores --root /usr/share/datasets/fashion-mnist --seeds 0 1 \
        --out tests/benchmarks/scores.md
    python -m tests.benchmarks.scores --root /usr/share/datasets/fashion-mnist --seeds 0 1 --subset 2000 --macs 0.5 \
        --networks efficientnet_b0-32px mixnet_s-32px --methods "uniform L1" taylor MRTS \
        --out tests/benchmarks/scores_compact.md

All start from the same dense network of a seed and see the same batches in the same order over as many epochs; one
shot scores train on until the removal, as the methods that sparsify do. The reference is uniform L1, the same share of
every layer. Runs that `results/scores.jsonl` holds are not trained again; ``--known`` writes the page from them alone.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning

from lightning_prune import (
    ChannelPruning,
    MRTSCallback,
    NetworkSlimmingCallback,
    ScorePruningCallback,
    SoftFilterPruningCallback,
)
from lightning_prune.channels import TargetError
from lightning_prune.scores import score_names
from lightning_prune.scores.random import Random
from lightning_prune.search.widths import Method
from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.pipelines import publish, quiet_trainer, remembered, shared_arguments, stamps
from tests.benchmarks.bench.runs import Run, dense_start
from tests.benchmarks.bench.searched import Searched
from tests.benchmarks.bench.table import signed
from tests.benchmarks.bench.watch import Watch

REFERENCE, DENSE = "uniform L1", "dense"
SMALL = ["resnet20-small", "vgg16-small", "mobilenetv2-small", "resnet56-small"]

Make = Callable[
    [float, int, int, Any], ChannelPruning
]  # of the share of MACs, the seed, epochs up to the removal, data


def _scored(name: str) -> Make:
    def make(macs: float, seed: int, sparsify: int, data: Any) -> ChannelPruning:
        score: Any = Random(seed) if name == "random" else name
        return ScorePruningCallback(score, target_macs=macs, warmup=0, sparsify=sparsify)

    return make


def _searched(method: Method) -> Make:
    def make(macs: float, seed: int, sparsify: int, data: Any) -> ChannelPruning:
        # All epochs are the warm-up: there is one selection, and so one search.
        return ScorePruningCallback(Searched(method, macs, seed, data), target_macs=macs, warmup=sparsify, sparsify=0)

    return make


def methods() -> dict[str, Make]:
    """What is compared, by the name that stands in the table; scores rank over all layers unless they say otherwise."""
    kinds = {"MRTS": MRTSCallback, "Network Slimming": NetworkSlimmingCallback, "SFP": SoftFilterPruningCallback}
    return {
        REFERENCE: lambda macs, seed, sparsify, data: ScorePruningCallback(
            "l1", scope="layer", target_macs=macs, warmup=0, sparsify=sparsify
        ),
        **{
            name: lambda macs, seed, sparsify, data, kind=kind: kind(target_macs=macs, warmup=0, sparsify=sparsify)
            for name, kind in kinds.items()
        },
        **{name: _scored(name) for name in score_names()},
        "evolution": _searched("evolution"),
        "AMC": _searched("amc"),
    }


def train(key: Mapping[str, Any], root: str, folder: Path) -> dict[str, Any]:
    """One run: accuracies in per cent right after the removal and at the end, and the share of MACs that is left.

    Of a method that cannot meet the share on this network, why not.
    """
    network, seed, sparsify = NETWORKS[key["network"]], key["seed"], key["sparsify"]
    start = dense_start(Run(key["network"], DENSE, 1, seed, key["subset"], key["dense"]), folder, root)
    lightning.seed_everything(seed, verbose=False)
    module = network.build(network.prune_lr)
    module.load_state_dict(start)
    data = network.data(root, key["subset"], seed + 100)
    found = {}
    callbacks: list[Any] = []
    if key["method"] != DENSE:
        made = methods()[key["method"]](key["macs"], seed, sparsify, data)
        callbacks = [made, Watch(made, data)]
    trainer = quiet_trainer(sparsify + key["finetune"], callbacks)
    try:
        trainer.fit(module, datamodule=data)
    except TargetError as error:
        return {"error": str(error).partition(". ")[0]}
    if callbacks:
        found = {"removed": 100 * callbacks[1].accuracy, **{k: callbacks[0].numbers[k] for k in ("macs", "params")}}
    return {**found, "accuracy": 100 * float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])}


Found = Mapping[tuple[str, str, float, int], Mapping[str, Any]]  # by network, method, MACs and seed


def above(found: Found, method: str, groups: Iterable[tuple[str, float]], column: str) -> list[float]:
    """How far a method is above the reference in each pair of runs of these networks and shares of MACs."""
    mine = [(key, line[column]) for key, line in found.items() if key[1] == method and (key[0], key[2]) in set(groups)]
    pairs = [(value, found.get((network, REFERENCE, macs, seed))) for (network, _, macs, seed), value in mine]
    return [value - other[column] for value, other in pairs if other is not None]


def table(found: Found, network: str, macs: float) -> list[str]:
    """Markdown: a method a row, the best after finetune first."""
    groups = [(network, macs)]
    of = {
        name: lines for name in methods()
        if (lines := [line for key, line in found.items() if key[:3] == (network, name, macs)])
    }  # fmt: skip
    rows = []
    for name, lines in sorted(of.items(), key=lambda item: -statistics.mean(x["accuracy"] for x in item[1])):
        means = {k: statistics.mean(line[k] for line in lines) for k in ("removed", "accuracy", "macs", "params")}
        cells = [
            name if name != REFERENCE else f"**{name}**",
            str(len(lines)),
            *itertools.chain.from_iterable(
                (f"{means[k]:.2f}", "" if name == REFERENCE else signed(above(found, name, groups, k)))
                for k in ("removed", "accuracy")
            ),
            f"{means['macs']:.3f}",
            f"{means['params']:.3f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return [
        "| method | seeds | right after the removal | above uniform | after finetune | above uniform | MACs left "
        "| parameters left |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def summary(found: Found, networks: Sequence[str], shares: Sequence[float]) -> list[str]:
    """Markdown: over all networks, how far each method is above the reference, paired by network and seed."""
    columns = [(macs, k) for macs in shares for k in ("removed", "accuracy")]
    titles = [f"{macs:g}, {'after the removal' if k == 'removed' else 'after finetune'}" for macs, k in columns]
    rows = []
    for name in methods():
        by_column = [above(found, name, [(n, macs) for n in networks], k) for macs, k in columns]
        if name != REFERENCE and any(by_column):
            pairs = "/".join(str(n) for n in dict.fromkeys(len(d) for d in by_column))
            last = statistics.mean(by_column[-1]) if by_column[-1] else -math.inf
            rows.append((last, f"| {name} | {pairs} | " + " | ".join(map(signed, by_column)) + " |"))
    head = ["| method | pairs | " + " | ".join(titles) + " |", "|" + "---|" * (len(columns) + 2)]
    return [*head, *(row for _, row in sorted(rows, key=lambda r: -r[0]))]


def page(found: Found, args: argparse.Namespace) -> str:
    """All tables, and what was measured with."""
    failed = {key: line["error"] for key, line in found.items() if "error" in line}
    found = {key: line for key, line in found.items() if "error" not in line}
    networks = [n for n in args.networks if any(key[0] == n for key in found)]
    lines = [
        "# All scores and methods that remove channels",
        "",
        f"Test accuracy in per cent on {'the bundled digits' if NETWORKS[networks[0]].bundled else 'Fashion-MNIST'}, "
        f"{args.subset} training images, mean over seeds. Every run starts from the dense network of its seed, trains "
        "up to the removal (methods that sparsify do so meanwhile), and finetunes; all have the same epochs, batches "
        f"and learning rates. Above uniform: how far above {REFERENCE}, which removes the same share of every layer, "
        "paired, with the 95 % interval; a minus is a loss. Scores by name rank over all layers; evolution and AMC try "
        "40 candidates on held-out batches. With so few seeds only large differences are told apart from chance, and "
        "among this many methods some are so by chance alone. Trainings are short: what a method would do with its "
        "paper's epochs is not shown.",
        "",
        "## Over all networks",
        "",
        *summary(found, networks, args.macs),
    ]
    for network in networks:
        known = NETWORKS[network]
        width = "".join(f", {k} {v}" for k, v in known.kwargs.items())
        dense = [line["accuracy"] for key, line in found.items() if key[:2] == (network, DENSE)]
        told = f", dense and trained as long {statistics.mean(dense):.2f}" if dense else ""
        epochs = " + ".join(map(str, known.epochs))
        lines += ["", f"## {known.model}{width}, {known.image_size} pixels", ""]
        lines += [f"{epochs} epochs (dense, up to the removal, finetune){told}."]
        for macs in args.macs:
            lines += ["", f"{macs:g} of the MACs:", "", *table(found, network, macs)]
            unmet = {key[1]: why for key, why in failed.items() if (key[0], key[2]) == (network, macs)}
            lines += ["", *(f"- {method}: not met. {why}." for method, why in unmet.items())] if unmet else []
    return "\n".join([*lines, "", *stamps(found.values())]) + "\n"


def grid(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What tells the runs apart, a seed of all methods after the other."""
    keys = []
    for network, seed in itertools.product(args.networks, args.seeds):
        dense, sparsify, finetune = NETWORKS[network].epochs
        common = {"subset": args.subset, "dense": dense, "sparsify": sparsify, "finetune": finetune}
        runs = [(DENSE, 1.0), *((method, macs) for macs in args.macs for method in args.methods)]
        keys += [{"network": network, "method": m, "macs": macs, "seed": seed, **common} for m, macs in runs]
    return keys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared_arguments(parser, RESULTS / "scores.jsonl", subset=3000)
    parser.add_argument("--networks", nargs="+", default=SMALL, choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(methods()), choices=list(methods()))
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.3])
    args = parser.parse_args()
    logging.getLogger("lightning_prune").setLevel(logging.ERROR)
    found = {}
    for key in grid(args):
        work = None if args.known else lambda k=key: train(k, args.root, args.results.parent / "starts")
        line = remembered(args.results, key, work)
        if line is not None:
            found[key["network"], key["method"], key["macs"], key["seed"]] = line
    if not found:
        raise SystemExit(f"{args.results} holds none of these runs: leave out --known to train them.")
    publish(page(found, args), args.out)


if __name__ == "__main__":
    main()
