r"""Are the weights that a pruned network inherits worth their training? Liu et al., arXiv 1810.05270, in small.

    python -m tests.benchmarks.rethinking --root /usr/share/datasets/fashion-mnist \
        --network resnet20-narrow --subset 2000 --seeds 0 1 --out tests/benchmarks/rethinking.md

A method prunes one dense training's network; the result is finetuned, trained from random weights over as many epochs
as the dense network was (Scratch-E), and over as many as cost what that did (Scratch-B). Names of scores may be given
as methods too. Pipelines that `results/rethinking.jsonl` holds are not run again.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
from itertools import islice
from typing import Any

import torch

from lightning_prune import NetworkSlimmingCallback, TimmClassifier, prune_channels, rethink
from lightning_prune.rethinking import ARMS
from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.pipelines import publish, quiet_trainer, remembered, shared_arguments, stamps, trained
from tests.benchmarks.bench.table import interval

# What `prune_channels` is given, by the method's name; the papers take one share of each layer.
SCORES: dict[str, dict[str, Any]] = {
    "L1 filters": {"score": "l1", "scope": "layer"},
    "ThiNet": {"score": "thinet", "scope": "layer", "reconstruct": "scale"},
    "LASSO": {"score": "lasso", "scope": "layer", "reconstruct": "weights"},
}
SLIMMING = "Network Slimming"


@functools.cache
def dense(network: str, seed: int, subset: int, root: str, epochs: int) -> tuple[TimmClassifier, float]:
    """The dense training that all scores of a seed start from, and its test accuracy."""
    return trained(network, seed, subset, root, epochs)


def pruned(method: str, seed: int, args: argparse.Namespace) -> tuple[TimmClassifier, float]:
    """The network that a method leaves of a dense training, before any finetune, and the accuracy of the training."""
    training = args.network, seed, args.subset, args.root, args.epochs
    if method == SLIMMING:
        # Its dense training is the sparse one; channels go when it ends.
        callback = NetworkSlimmingCallback(target_macs=args.macs, warmup=1, sparsify=args.epochs - 1, finetune=0)
        return trained(*training, [callback])
    start, accuracy = dense(*training)
    module = copy.deepcopy(start)
    data = NETWORKS[args.network].data(args.root, args.subset, seed)
    data.setup("fit")
    batches = list(islice(data.train_dataloader(), 8))
    options = SCORES.get(method, {"score": method})
    prune_channels(module.model, batches[0][0][:2], batches=batches, macs=args.macs, **options)
    return module, accuracy


def pipeline(method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """All trainings of a method's network from one dense training."""
    network = NETWORKS[args.network]
    module, accuracy = pruned(method, seed, args)
    compared = rethink(
        module,
        make=lambda arm: network.build(network.prune_lr if arm == "finetuned" else network.lr),
        trainer=quiet_trainer,
        data=lambda seed: network.data(args.root, args.subset, seed),
        example_input=torch.zeros(1, 1, network.image_size or 28, network.image_size or 28),
        epochs=args.epochs, finetune=args.finetune, seeds=[seed + 100],
    )  # fmt: skip
    trainings = [vars(training) for training in compared.trainings]
    return {"dense": accuracy, "trainings": trainings}


def row(method: str, found: list[dict[str, Any]]) -> str:
    """One line of the table: means over seeds; of the scratch trainings how far they are above the finetuned one."""
    arms = {arm: [100 * t["value"] for f in found for t in f["trainings"] if t["arm"] == arm] for arm in ARMS}
    cells = [f"{statistics.mean(f['dense'] for f in found):.2f}"]
    for arm, values in arms.items():
        above, half = interval([v - base for v, base in zip(values, arms["finetuned"], strict=True)])
        error = f" ± {half:.2f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.2f}" + ("" if arm == "finetuned" else f" ({above:+.2f}{error})"))
    return f"| {method} | {len(found)} | {' | '.join(cells)} |"


def page(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> str:
    """The comparison as a page."""
    some = next(iter(found.values()))[0]
    epochs = ", ".join(f"{t['arm']} {t['epochs']} ({t['cost']:.2f})" for t in some["trainings"])
    data = "the bundled digits" if NETWORKS[args.network].bundled else "Fashion-MNIST"
    lines = [
        "# Rethinking the value of pruning, in small",
        "",
        f"Test accuracy in per cent on {data}, {args.subset} training images, {args.network}, at {args.macs:g} of the "
        "MACs, mean over seeds; in brackets how far training from scratch is above the finetuned network, paired by "
        "seed, with the 95 % interval. Epochs, and in brackets their cost as a multiple of the dense training's "
        f"{args.epochs}: {epochs}.",
        "",
        "| method | seeds | after the dense training | finetuned | Scratch-E | Scratch-B |",
        "|---|---|---|---|---|---|",
        *(row(method, of_method) for method, of_method in found.items()),
        "",
        "After the dense training: of Network Slimming with the channels gone already, of the others before they go.",
        "",
        *stamps(line for lines in found.values() for line in lines),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared_arguments(parser, RESULTS / "rethinking.jsonl", subset=4000)
    parser.add_argument("--network", default="resnet20-14px", choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=[*SCORES, SLIMMING], help="of the table, or names of scores")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--finetune", type=int, default=4)
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ("network", "macs", "subset", "epochs", "finetune")}
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for method in args.methods:
            key = {"method": method, "seed": seed, **settings}
            line = remembered(args.results, key, None if args.known else lambda m=method, s=seed: pipeline(m, s, args))
            if line is not None:
                found.setdefault(method, []).append(line)
    if not found:
        raise SystemExit(f"{args.results} holds none of these: leave out --known to train them.")
    publish(page(found, args), args.out)


if __name__ == "__main__":
    main()
