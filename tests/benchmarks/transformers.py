r"""ViT, Swin and ConvNeXt at half of their MACs: how fast, how accurate, and beside Torch-Pruning in the same process.

    python -m tests.benchmarks.transformers --root /usr/share/datasets/fashion-mnist \
        --out tests/benchmarks/transformers.md

Latency is that of the whole networks at 224 pixels, with random weights. Accuracy is that of the same architectures on
small images: all arms start from one dense network, are cut by a Taylor score on the same batches, and finetune on the
same ones. Lines that `results/transformers.jsonl` holds are not made again, and without Torch-Pruning
its arms are left out.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
from torch import Tensor, nn

from lightning_prune import prune_channels
from lightning_prune.export.measure import network_accuracy
from lightning_prune.export.meter import OnnxMeter
from lightning_prune.support.faults import explain
from lightning_prune.support.latency import interleaved
from tests.benchmarks.bench import peer
from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.pipelines import publish, quiet_trainer, remembered, shared_arguments, stamps
from tests.benchmarks.bench.runs import Run, dense_start

MACS, TARGET, ROUNDS = 0.5, 0.62, 15
TESTED = 2048  # images; the whole test set takes longer than the training
SMALL = {"convnext_atto": "convnext_atto-32px", "vit_tiny_patch16_224": "vit_tiny-64px",
         "swin_tiny_patch4_window7_224": "swin_tiny-32px"}  # fmt: skip
OURS = {"ours": "keep", "ours, stream": "exact"}
THEIRS = {"Torch-Pruning": False, "Torch-Pruning, stream": True}


def cut(dense: nn.Module, example: Tensor, arm: str, batches: Sequence[Any] = ()) -> peer.Cut:
    """A compact copy by one arm: by the Taylor score on batches, or by the L1 score without."""
    if arm in THEIRS:
        return peer.cut(dense, example, MACS, THEIRS[arm], batches)
    model = copy.deepcopy(dense).eval()
    found = prune_channels(
        model, example, score="taylor" if batches else "l1", batches=batches, scope="isomorphic", macs=MACS, divisor=8,
        norms=OURS[arm],
    )  # fmt: skip
    assert found.proof is not None
    return peer.Cut(model, found.macs[1] / found.macs[0], found.proof.difference)


def arms() -> list[str]:
    return [*OURS, *(THEIRS if peer.is_there() else ())]


def latency(name: str) -> dict[str, Any]:
    """CPU milliseconds of every arm in onnxruntime, in turn, or how it ended."""
    torch.manual_seed(0)
    dense, example = timm.create_model(name, num_classes=10).eval(), torch.randn(2, 3, 224, 224)
    meter, found = OnnxMeter(time.process_time), {"dense": {"macs": 1.0, "difference": 0.0}}
    calls = [meter.load(copy.deepcopy(dense), example, 1)]
    for arm in arms():
        try:
            made = cut(dense, example, arm)
            calls.append(meter.load(made.model, example, 1))
            found[arm] = {"macs": made.macs, "difference": made.difference}
        except Exception as error:  # goes into the table
            found[arm] = {"error": explain(error)}
    seconds = iter(interleaved(calls, ROUNDS, warmup=2, clock=meter.clock))
    first = next(seconds)
    for line in found.values():
        if "error" not in line:
            mine = first if line is found["dense"] else next(seconds)
            line["ms"] = 1e3 * statistics.median(mine)
            line["ratio"] = statistics.median(b / a for a, b in zip(first, mine, strict=True))
    return {"arms": found}


def accuracy(key: Mapping[str, Any], root: str, folder: Path) -> dict[str, Any]:
    """Test accuracy in per cent of one arm, right after the cut and after finetune, or how it ended."""
    network, seed, arm = NETWORKS[SMALL[key["network"]]], key["seed"], key["arm"]
    run = Run(SMALL[key["network"]], "dense", 1, seed, key["subset"], key["dense"])
    start = dense_start(run, folder, root)
    module, data = network.build(network.prune_lr), network.data(root, key["subset"], seed)
    module.load_state_dict(start)
    found: dict[str, Any] = {}

    def tested() -> float:
        images = islice(data.test_dataloader(), key["tested"] // network.batch_size)
        return 100 * network_accuracy(module.model, images)

    data.setup("fit")
    data.setup("test")
    if arm != "dense":
        lightning.seed_everything(seed, verbose=False)
        batches = list(islice(data.train_dataloader(), 8))
        try:
            made = cut(module.model, batches[0][0][:2], arm, batches)
        except Exception as error:  # goes into the table
            return {"error": explain(error)}
        module.model = made.model
        found = {"macs": made.macs, "difference": made.difference}
    found["before"] = tested()
    lightning.seed_everything(seed, verbose=False)
    quiet_trainer(key["finetune"]).fit(module, datamodule=data)
    return {**found, "accuracy": tested()}


def page(speeds: list[dict[str, Any]], runs: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        f"# ViT, Swin and ConvNeXt at {MACS:g} of the MACs",
        "",
        "*ours* cuts hidden units and what else the norms let go (`norms='keep'`, the default), *stream* the residual "
        "stream too (`norms='exact'`); Torch-Pruning as its ViT example does it, at the largest of its ratios that "
        'leaves no more than that, found by bisection, with its stream ignored ("bottleneck") or not. Both rank over '
        "layers of like structure, in multiples of 8 channels. MACs are PyTorch's own count. *masked - sliced* is the "
        "largest difference of the compact network and the dense one with the same rows at zero, in float64 (ours in "
        "float32 where the proof settles it there, with a rounding of 1e-7), as a "
        "share of the largest output: what is right gives rounding.",
        "",
        f"## Latency, 224 pixels, batch 1, random weights, L1 score; wanted: at most {TARGET:g} of dense",
        "",
        f"onnxruntime, one thread, medians of {ROUNDS} calls of all in turn, in CPU time.",
        "",
        "| network | arm | MACs left | masked - sliced | ms | of dense |",
        "|---|---|---|---|---|---|",
    ]
    for speed in speeds:
        for arm, line in speed["arms"].items():
            cells = [f"not run: {line.get('error', '')[:150]}", *"   "]
            if "error" not in line:
                cells = [
                    f"{line['macs']:.3f}",
                    f"{line['difference']:.0e}",
                    f"{line['ms']:.1f}",
                    f"{line['ratio']:.3f}",
                ]
            lines.append(f"| {speed['run']['network']} | {arm} | {' | '.join(cells)} |")
    for run in runs[:1]:
        key = run["run"]
        lines += [
            "",
            f"## Accuracy, Fashion-MNIST, {key['subset']} training images",
            "",
            f"Accuracy in per cent on the first {key['tested']} test images. {key['dense']} epochs of dense training; "
            f"from there every arm, the dense one too, trains {key['finetune']} more on the same batches. Taylor score "
            "on 8 batches. Short trainings: with so few seeds only large differences are told apart from chance. A "
            "ConvNeXt's blocks hardly add to its stream yet, as their layer scale starts at 1e-6, so hidden units go "
            "at no cost there.",
            "",
            "| network | arm | seed | MACs left | masked - sliced | right after | after finetune |",
            "|---|---|---|---|---|---|---|",
        ]
    for run in runs:
        key = run["run"]
        cells = [f"not run: {run.get('error', '')[:150]}", *"   "]
        if "error" not in run:
            cells = [f"{run.get('macs', 1):.3f}", f"{run.get('difference', 0):.0e}", f"{run['before']:.2f}",
                     f"{run['accuracy']:.2f}"]  # fmt: skip
        lines.append(f"| {SMALL[key['network']]} | {key['arm']} | {key['seed']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *stamps([*speeds, *runs])]) + "\n"


def keys(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Of all runs whose accuracy is asked for; known ones of a peer need no peer."""
    asked = ["dense", *OURS, *THEIRS] if args.known else ["dense", *arms()]
    for seed, network, arm in itertools.product(args.seeds, args.networks, asked):
        dense, _, finetune = NETWORKS[SMALL[network]].epochs
        yield {"network": network, "arm": arm, "seed": seed, "subset": args.subset, "dense": dense,
               "finetune": finetune, "tested": TESTED}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared_arguments(parser, RESULTS / "transformers.jsonl", subset=1500)
    parser.add_argument("--networks", nargs="+", default=list(SMALL), choices=list(SMALL))
    parser.add_argument("--parts", nargs="+", default=["latency", "accuracy"], choices=["latency", "accuracy"])
    args = parser.parse_args()
    speeds, runs, folder = [], [], args.results.parent / "starts"
    for name in args.networks:
        work = None if args.known or "latency" not in args.parts else lambda n=name: latency(n)
        speeds += [remembered(args.results, {"part": "latency", "network": name}, work)]
    for key in keys(args):
        work = None if args.known or "accuracy" not in args.parts else lambda k=key: accuracy(k, args.root, folder)
        runs += [remembered(args.results, {"part": "accuracy", **key}, work)]
    publish(page([line for line in speeds if line], [line for line in runs if line]), args.out)


if __name__ == "__main__":
    main()
