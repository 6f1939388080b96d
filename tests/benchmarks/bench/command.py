"""The command line that all questions of the bench share: which runs, where they are kept, what page comes out."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.bench.methods import names
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.runs import Run, run_all
from tests.benchmarks.bench.table import compare

RESULTS = Path(__file__).parent.parent / "results"


def arguments(
    description: str | None,
    name: str,
    methods: Sequence[str],
    compression: Sequence[float],
    networks: Sequence[str] = ("resnet20-14px",),
    seeds: Sequence[int] = (0, 1, 2),
) -> argparse.Namespace:
    """What every question takes, with its own defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST's files, or the one above it")
    parser.add_argument("--networks", nargs="+", default=list(networks), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(methods), choices=names())
    parser.add_argument("--compression", type=float, nargs="+", default=list(compression))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--subset", type=int, help="training images; 0: all; by default as many as the network says")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS / f"{name}.jsonl")
    parser.add_argument("--known", action="store_true", help="write the page from the runs that are there; train none")
    parser.add_argument("--out", type=Path, help="page to write")
    return parser.parse_args()


def grid(args: argparse.Namespace, variants: Sequence[dict[str, Any]] = ({},)) -> list[Run]:
    """A run for each network, compression, variant (what else of `Run` it sets), method and seed."""
    runs = []
    for network, compression, variant in itertools.product(args.networks, args.compression, variants):
        epochs = dict(zip(("dense", "sparsify", "finetune"), NETWORKS[network].epochs, strict=True))
        subset = NETWORKS[network].images if args.subset is None else args.subset
        settings = {"subset": subset} | epochs | variant
        runs += [Run(network, m, compression, seed, **settings) for m in args.methods for seed in args.seeds]
    return runs


def answer(
    args: argparse.Namespace,
    runs: Iterable[Run],
    rows: Callable[[Run], Hashable],
    title: str,
    question: str,
    reference: str = "LTP",
    foot: Sequence[str] = (),
    table: Callable[[Mapping[Run, Mapping[str, Any]]], list[str]] | None = None,
) -> str:
    """Train what is missing, and the page: question, table, what stands below it, and what it was measured with."""
    results = run_all(runs, args.results, args.root, 0 if args.known else args.jobs)
    if not results:
        raise SystemExit(f"{args.results} holds none of these runs: leave out --known to train them.")
    page = [
        question,
        "",
        f"Test accuracy in per cent on Fashion-MNIST, {_images(results)}, mean over seeds (their number is "
        f"{reference}'s); in brackets how far {reference} is above, paired by seed, with the 95 % interval where there "
        "are two pairs or more.",
        "",
        *(compare(results, rows, reference, title) if table is None else table(results)),
        "",
        *(line for below in foot for line in (below, "")),
        *_measured(results.values()),
    ]
    text = "\n".join(page) + "\n"
    print(text)
    if args.out is not None:
        args.out.write_text(text)
    return text


def _images(results: Iterable[Run]) -> str:
    networks: dict[int, list[str]] = {}
    for run in results:
        networks.setdefault(run.subset, []).append(run.network)
    text = [f"{images or 'all'} training images" for images in networks]
    if len(text) == 1:
        return text[0]
    names = (", ".join(dict.fromkeys(each)) for each in networks.values())
    return ", ".join(f"{images} ({of})" for images, of in zip(text, names, strict=True))


def _measured(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """When, at which revisions and with which versions, a line for all that share the versions."""
    stamps: dict[str, list[tuple[str, str]]] = {}
    for result in results:
        stamps.setdefault(result["versions"], []).append((result["date"], result["revision"]))
    lines = []
    for versions, found in sorted(stamps.items()):
        dates, revisions = sorted({date for date, _ in found}), list(dict.fromkeys(r for _, r in sorted(found)))
        when, of = " to ".join([dates[0], dates[-1]][: len(dates)]), "revision" if len(revisions) == 1 else "revisions"
        lines.append(f"Measured {when}, {of} {', '.join(revisions)}, {versions}.")
    return lines
