"""Where do LTP and magnitude leave their weights? Read off the runs that are known; nothing is trained.

python -m tests.benchmarks.kept_where --out tests/benchmarks/kept_where.md
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_prune.functional import path
from lightning_prune.masks import find_targets
from lightning_prune.support.macs import macs_by_weight
from tests.benchmarks.accuracy import EPOCHS, SEEDS
from tests.benchmarks.bench.command import RESULTS, grid
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.pipelines import publish, stamps
from tests.benchmarks.bench.runs import Run, run_all

_METHODS = ("LTP", "magnitude", "magnitude, feedback")
_COMPACT = ("efficientnet_b0-32px", "mixnet_s-32px", "mobilenetv2-32px")
_MANY, _ENOUGH = 2.0, 0.02  # times its prior, and a share above the floors of layers


@dataclass(frozen=True)
class Layers:
    """A network's prunable layers: names, weights, MACs on one image, and shares of those that the prior keeps."""

    names: list[str]
    numels: list[int]
    macs: list[int]
    prior: list[float]

    @classmethod
    def of(cls, network: str, goal: float) -> Layers:
        """Of a network of the bench, and the prior of a share ``goal``."""
        settings = NETWORKS[network]
        module = settings.build(settings.lr).eval()
        targets, _ = find_targets(module, trains=lambda _: True)
        numels, pixels = [t.numel for t in targets], settings.image_size or 28
        with torch.no_grad(), macs_by_weight({t.name: t.param for t in targets}) as found:
            module(torch.zeros(1, 1, pixels, pixels))
        prior = path.prior_shares(path.fan_prior([t.fans for t in targets], numels), numels, goal)[1].tolist()
        return cls([t.name for t in targets], numels, [found.by_weight[t.name] for t in targets], prior)


@dataclass(frozen=True)
class Kept:
    """What is left of the layers' MACs, and whose share of the kept weights is far above the prior's.

    Attributes:
        macs: share of the layers' MACs, in products with a weight that is left.
        above: layers that keep more than twice what their prior says, by what they hold of all weights that are left.
        prior: what the prior would give those of as many.
    """

    macs: float
    above: dict[str, float]
    prior: float

    @classmethod
    def of(cls, layers: Layers, keeps: list[float]) -> Kept:
        """Of the share of its weights that each layer keeps."""
        counts = [n * k for n, k in zip(layers.numels, keeps, strict=True)]
        left, dense = sum(m * k for m, k in zip(layers.macs, keeps, strict=True)), sum(layers.macs)
        high = [i for i, k in enumerate(keeps) if k > max(_MANY * layers.prior[i], _ENOUGH)]
        above = {layers.names[i]: counts[i] / sum(counts) for i in high}
        return cls(left / dense, above, sum(layers.numels[i] * layers.prior[i] for i in high) / sum(counts))


def row(run: Run, line: Mapping[str, Any], layers: Layers) -> str:
    """A run's row of the table."""
    kept = Kept.of(layers, line["keeps"])
    most = sorted(kept.above.items(), key=lambda item: -item[1])[:4]
    names = ", ".join(f"{n.removeprefix('model.').removesuffix('.weight')} {100 * s:.1f}" for n, s in most)
    cells = [
        f"{run.network}, {run.compression:g}x", run.method, str(run.seed), f"{100 * line['accuracy']:.2f}",
        f"{100 * kept.macs:.1f}", f"{100 * sum(kept.above.values()):.1f}", f"{100 * kept.prior:.1f}", names or "–",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(_COMPACT), choices=list(NETWORKS))
    parser.add_argument("--compression", type=float, default=20.0)
    parser.add_argument("--results", type=Path, default=RESULTS / "accuracy.jsonl", help="the runs that are known")
    parser.add_argument("--out", type=Path, help="page to write")
    args = parser.parse_args()
    asked = {"networks": args.networks, "methods": _METHODS, "compression": [args.compression], "seeds": SEEDS}
    found = run_all(grid(argparse.Namespace(**asked, subset=None), [EPOCHS]), args.results, "", jobs=0)
    runs = sorted(found, key=lambda r: (r.network, r.seed, r.method))
    layers = {network: Layers.of(network, 1 / args.compression) for network in {r.network for r in runs}}
    page = [
        "# Where the kept weights are", "",
        "Runs of [unstructured accuracy](accuracy.md): all figures in per cent. MACs: what is left of the "
        "prunable layers' dense ones. Above: what those layers hold of all kept weights that keep more than twice what "
        "LTP's prior says, and how much the prior would give them. Last: the largest of them.", "",
        "| network, compression | method | seed | accuracy | MACs | above | prior | most above |", "|" + "---|" * 8,
        *(row(run, found[run], layers[run.network]) for run in runs), "",
        *stamps([found[run] for run in runs]),
    ]  # fmt: skip
    publish("\n".join(page) + "\n", args.out)


if __name__ == "__main__":
    main()
