r"""Does MRTS find out by itself how much may go? Its threshold follows from δ, with no target.

    python -m tests.benchmarks.own_threshold --root /usr/share/datasets/fashion-mnist \
        --out tests/benchmarks/own_threshold.md

As in the paper, one training from fresh weights: epochs with the penalty, the removal, and finetuning. MRTS with
measured information ("labels") and with the closed form ("gaussian") decide by δ alone. Then all others are asked for
the MACs that the first of them left, and the compact network that it found is trained from fresh weights too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning

from lightning_prune import MRTSCallback, NetworkSlimmingCallback, ScorePruningCallback, TimmClassifier
from lightning_prune.support.retrain import reinitialise
from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.pipelines import publish, quiet_trainer, remembered, shared_arguments, stamps
from tests.benchmarks.bench.table import signed

OWN, FRESH, DENSE = "MRTS, measured information", "its compact network, fresh weights", "dense"
ALONE: dict[str, dict[str, Any]] = {
    OWN: {"information": "labels"},
    "the same, half the travel": {"information": "labels", "travel": 1.25},
    "MRTS, closed form": {},
}
RIVALS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "MRTS, closed form, at its MACs": (MRTSCallback, {}),
    "Network Slimming": (NetworkSlimmingCallback, {}),
    "L1 norm, uniform": (ScorePruningCallback, {"score": "l1", "scope": "layer"}),
    "FPGM": (ScorePruningCallback, {"score": "fpgm"}),
    "Taylor": (ScorePruningCallback, {"score": "taylor"}),
}
NAMES = [DENSE, *ALONE, *RIVALS, FRESH]


def train(name: str, key: Mapping[str, Any], root: str, macs: float) -> dict[str, float]:
    """One training: test accuracy in per cent, and the share of MACs that is left."""
    network, epochs = NETWORKS[key["network"]], {"warmup": 0, "sparsify": key["sparsify"]}
    lightning.seed_everything(key["seed"], verbose=False)
    module = network.build(network.lr)
    callback: Any = None
    if name in ALONE or name == FRESH:
        callback = MRTSCallback(delta=key["delta"], **(ALONE[OWN] if name == FRESH else ALONE[name]), **epochs)
    elif name in RIVALS:
        kind, options = RIVALS[name]
        callback = kind(target_macs=macs, **options, **epochs)
    total = key["sparsify"] + key["finetune"]
    accuracy = fit(module, key, root, total, callback)
    if name == FRESH:
        reinitialise(module.model, (), key["seed"])
        accuracy = fit(module, key, root, total)
    return {"accuracy": accuracy, "macs": callback.numbers["macs"] if callback is not None else 1.0}


def fit(module: TimmClassifier, key: Mapping[str, Any], root: str, epochs: int, callback: Any = None) -> float:
    """Test accuracy in per cent after so many epochs."""
    data = NETWORKS[key["network"]].data(root, key["subset"], key["seed"])
    trainer = quiet_trainer(epochs, [] if callback is None else [callback])
    trainer.fit(module, datamodule=data)
    return 100 * float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])


def page(found: Mapping[str, Sequence[Mapping[str, Any]]], args: argparse.Namespace) -> str:
    """Means over seeds, and how far the first row is above, paired."""
    network = NETWORKS[args.network]
    rows = []
    for name, lines in found.items():
        means = {k: statistics.mean(line[k] for line in lines) for k in ("accuracy", "macs")}
        mine = {line["run"]["seed"]: line["accuracy"] for line in found[OWN]}
        pairs = [mine[line["run"]["seed"]] - line["accuracy"] for line in lines if line["run"]["seed"] in mine]
        above = "" if name == OWN else signed(pairs)
        rows.append(f"| {name} | {len(lines)} | {means['macs']:.3f} | {means['accuracy']:.2f} | {above} |")
    return "\n".join(
        [
            "# The threshold that MRTS finds by itself",
            "",
            f"Test accuracy in per cent on Fashion-MNIST, {args.subset} training images, {network.model} at "
            f"{network.image_size} pixels, {args.sparsify} epochs up to the removal and {args.finetune} after it, from "
            f"fresh weights, mean over seeds; last, how far {OWN} is above, paired by seed, with the 95 % interval. It "
            f"and the closed form decide by δ = {args.delta:g} alone, with no target; the others were asked for the "
            "MACs that it left.",
            "",
            f"| method | seeds | MACs left | accuracy | {OWN} above |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *stamps(line for lines in found.values() for line in lines),
        ]
    ) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared_arguments(parser, Path(RESULTS / "own_threshold.jsonl"), subset=3000)
    parser.add_argument("--network", default="resnet20-10px", choices=list(NETWORKS))
    parser.add_argument("--sparsify", type=int, default=14)
    parser.add_argument("--finetune", type=int, default=6)
    parser.add_argument("--delta", type=float, default=1e-3)
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (OWN, *(n for n in NAMES if n != OWN))}
    shared = {k: getattr(args, k) for k in ("network", "subset", "sparsify", "finetune", "delta")}
    for seed in args.seeds:
        macs = 0.0  # what the first, OWN, leaves
        for name in found:
            key = {"method": name, "seed": seed, **shared}
            work = None if args.known else lambda name=name, key=key, macs=macs: train(name, key, args.root, macs)
            if line := remembered(args.results, key, work):
                found[name].append(line)
                macs = line["macs"] if name == OWN else macs
    if not found[OWN]:
        raise SystemExit(f"{args.results} holds none of these runs: leave out --known to train them.")
    publish(page({name: lines for name, lines in found.items() if lines}, args), args.out)


if __name__ == "__main__":
    main()
