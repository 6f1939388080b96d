r"""Accuracy at a share of the MACs of networks without BatchNorm, with and without their stream and the dims of heads.

    python -m tests.benchmarks.stream_accuracy --root /usr/share/datasets/fashion-mnist \
        --subset 1500 --seeds 0 --out tests/benchmarks/stream_accuracy.md

All runs of a seed start from one dense network, train on, are pruned by the Taylor score over all layers, and finetune,
on the same batches. Runs that `results/stream_accuracy.jsonl` holds are not trained again.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning

from lightning_prune import ScorePruningCallback
from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.pipelines import publish, quiet_trainer, remembered, shared_arguments, stamps
from tests.benchmarks.bench.runs import Run, dense_start

ARMS: dict[str, dict[str, Any]] = {
    "hidden units alone": {},
    "and dims of heads": {"surgery": {"norms": "exact"}, "exclude": ["*patch_embed.proj*"]},
    "and whole heads": {"surgery": {"attention": "heads"}},
    "and dims of heads, and the stream": {"surgery": {"norms": "exact"}},
    "and whole heads, and the stream": {"surgery": {"norms": "exact", "attention": "heads"}},
}
WITHOUT_HEADS = ("hidden units alone", "and dims of heads, and the stream")  # all that a ConvNeXt has


def train(key: Mapping[str, Any], root: str, folder: Path) -> dict[str, float]:
    """One run: test accuracy in per cent, and what is left."""
    network, seed = NETWORKS[key["network"]], key["seed"]
    start = dense_start(Run(key["network"], "dense", 1, seed, key["subset"], key["dense"]), folder, root)
    lightning.seed_everything(seed, verbose=False)
    module = network.build(network.prune_lr)
    module.load_state_dict(start)
    made = ScorePruningCallback(
        "taylor", target_macs=key["macs"], warmup=0, sparsify=key["sparsify"], **ARMS[key["arm"]]
    )
    trainer, data = quiet_trainer(key["sparsify"] + key["finetune"], [made]), network.data(root, key["subset"], seed)
    trainer.fit(module, datamodule=data)
    accuracy = 100 * float(trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"])
    return {"accuracy": accuracy, **{name: made.numbers[name] for name in ("macs", "params")}}


def page(found: Mapping[tuple[str, float, str, int], Mapping[str, Any]], subset: int) -> str:
    """A table for each network and share of MACs."""
    lines = [
        "# With and without the stream",
        "",
        f"Test accuracy in per cent on Fashion-MNIST, {subset} training images, pruned by the Taylor score over all "
        "layers. The stream is what LayerNorms normalise (`norms='exact'`). Short trainings of small networks; with so "
        "few seeds only large differences are told apart from chance.",
    ]
    for network, macs in dict.fromkeys(key[:2] for key in found):
        lines += ["", f"## {network}, {macs:g} of the MACs", ""]
        lines += ["| what may go | each seed | mean | MACs left | parameters left |", "|---|---|---|---|---|"]
        for arm in ARMS:
            mine = [line for key, line in found.items() if key[:3] == (network, macs, arm)]
            if mine:
                mean = {k: statistics.mean(line[k] for line in mine) for k in ("accuracy", "macs", "params")}
                each = ", ".join(f"{line['accuracy']:.2f}" for line in mine)
                lines.append(f"| {arm} | {each} | {mean['accuracy']:.2f} | {mean['macs']:.3f} | {mean['params']:.3f} |")
    return "\n".join([*lines, "", *stamps(found.values())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared_arguments(parser, RESULTS / "stream_accuracy.jsonl", subset=3000)
    parser.add_argument("--networks", nargs="+", default=["vit-16px", "convnext-16px"], choices=list(NETWORKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5])
    args = parser.parse_args()
    found = {}
    for seed, network, macs, arm in itertools.product(args.seeds, args.networks, args.macs, args.arms):
        if "convnext" in network and arm not in WITHOUT_HEADS:
            continue
        dense, sparsify, finetune = NETWORKS[network].epochs
        epochs = {"subset": args.subset, "dense": dense, "sparsify": sparsify, "finetune": finetune}
        key = {"network": network, "arm": arm, "macs": macs, "seed": seed, **epochs}
        work = None if args.known else lambda k=key: train(k, args.root, args.results.parent / "starts")
        line = remembered(args.results, key, work)
        if line is not None:
            found[network, macs, arm, seed] = line
    if not found:
        raise SystemExit(f"{args.results} holds none of these runs: leave out --known to train them.")
    publish(page(found, args.subset), args.out)


if __name__ == "__main__":
    main()
