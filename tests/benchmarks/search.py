r"""Are searched widths worth it, and does AMC's agent find better ones than evolution, or than evolution at a tenth?

    python -m tests.benchmarks.search --root /usr/share/datasets/fashion-mnist --out tests/benchmarks/search.md

From one dense network a seed: a search over the layers' widths at one share of the MACs, by chance, by evolution and by
AMC, at equal numbers of candidates and at a tenth of them; beside it the same share of every layer and one order over
all layers. All go by L1 within a layer. Runs that `results/search.jsonl` holds are not repeated.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import torch

from lightning_prune import prune_channels
from lightning_prune.search import accuracy_on, search_widths
from lightning_prune.support.batchnorm import recalibrate
from lightning_prune.support.modes import mode
from tests.benchmarks.bench.command import RESULTS
from tests.benchmarks.bench.networks import NETWORKS
from tests.benchmarks.bench.pipelines import publish, quiet_trainer, remembered, shared_arguments, stamps
from tests.benchmarks.bench.runs import Run, dense_start
from tests.benchmarks.bench.table import signed

UNIFORM = "uniform"
PLAIN = {UNIFORM: ("l1", "layer"), "one order, l1": ("l1", "global"), "one order, taylor": ("taylor", "global")}
SEARCHES = ("random", "evolution", "amc")
COLUMNS = {"held_out": "held out", "removed": "right after the removal", "accuracy": "after finetune"}


def run(key: Mapping[str, Any], root: str, folder: Path, finetune: int, batches: int = 8) -> dict[str, float]:
    """A search or a plain removal: accuracies in per cent, candidates' CPU seconds."""
    network, seed, macs = NETWORKS[key["network"]], key["seed"], key["macs"]
    start = dense_start(Run(key["network"], "dense", 1, seed, key["subset"], key["dense"]), folder, root)
    lightning.seed_everything(seed, verbose=False)
    module = network.build(network.prune_lr)
    module.load_state_dict(start)
    data = network.data(root, key["subset"], seed)
    data.setup("fit")
    train = list(islice(data.train_dataloader(), 3))
    images, example = [x for x, _ in train], train[0][0][:2]
    held_out = accuracy_on(islice(data.val_dataloader(), batches))
    clock = time.process_time()
    options: dict[str, Any] = {"macs": macs, "min_channels": 0.2}
    if key["method"] in PLAIN:
        score, scope = PLAIN[key["method"]]
        prune_channels(module.model, example, score=score, scope=scope, batches=train, **options)
    else:
        options |= {"method": key["method"], "budget": key["candidates"], "seed": seed, "recalibrate_on": images}
        search_widths(module.model, example, held_out, **options).plan.apply(module.model)
    seconds = time.process_time() - clock
    recalibrate(module.model, images)
    with mode(module.model, False), torch.no_grad():
        held = 100 * held_out(module.model)

    def tested() -> float:
        return 100 * float(quiet_trainer(0).test(module, datamodule=data, verbose=False)[0]["test/acc"])

    removed = tested()
    quiet_trainer(finetune).fit(module, datamodule=network.data(root, key["subset"], seed + 100))
    return {"held_out": held, "removed": removed, "accuracy": tested(), "seconds": seconds}


Found = Mapping[tuple[str, int], Mapping[int, Mapping[str, Any]]]  # lines by seed, by method and candidates


def apart(mine: Mapping[int, Mapping[str, Any]], other: Mapping[int, Mapping[str, Any]], column: str) -> str:
    """How far the first is above the second, paired by seed; a minus is a loss."""
    return signed([mine[s][column] - other[s][column] for s in sorted(mine.keys() & other.keys())])


def page(found: Found, args: argparse.Namespace) -> str:
    """The comparison as a page."""
    reference = found[UNIFORM, 1]
    rows = []
    for (method, candidates), lines in found.items():
        cells = [
            method,
            str(candidates),
            str(len(lines)),
            f"{statistics.mean(v['seconds'] for v in lines.values()):.0f}",
        ]
        for column in COLUMNS:
            mean = f"{statistics.mean(v[column] for v in lines.values()):.2f}"
            cells.append(mean if method == UNIFORM else f"{mean} ({apart(lines, reference, column)})")
        rows.append("| " + " | ".join(cells) + " |")
    pairs = [("evolution", args.candidates), ("evolution", args.candidates // 10), ("random", args.candidates)]
    questions = [
        f"- {name} with {n} candidates above AMC with {args.candidates}: "
        + ", ".join(f"{apart(found[name, n], found['amc', args.candidates], c)} {t}" for c, t in COLUMNS.items())
        for name, n in pairs
        if (name, n) in found and ("amc", args.candidates) in found
    ]
    network = NETWORKS[args.network]
    width = "".join(f", {k} {v}" for k, v in network.kwargs.items())
    text = [
        "# Searched widths: AMC, evolution and chance",
        "",
        f"Accuracy in per cent at {args.macs:g} of the MACs, mean over seeds; in brackets how far above the same share "
        f"of every layer, paired by seed, with the 95 % interval. {network.model}{width}, {network.image_size} pixels, "
        f"{args.subset} training images of "
        f"{'the bundled digits' if network.bundled else 'Fashion-MNIST'}, {args.dense} dense epochs, {args.finetune} "
        "of finetune. Candidates are judged with channels masked on 8 held-out batches, BatchNorm statistics "
        "re-estimated on 3 training batches; the two other columns are of the test images. CPU seconds are of the "
        "search and the removal.",
        "",
        "| method | candidates | seeds | CPU s | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        *questions,
        "",
        *stamps(line for lines in found.values() for line in lines.values()),
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared_arguments(parser, RESULTS / "search.jsonl", subset=3000)
    parser.add_argument("--network", default="resnet20-small", choices=list(NETWORKS))
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--candidates", type=int, default=160)
    parser.add_argument("--dense", type=int, default=10, help="epochs of the dense training")
    parser.add_argument("--finetune", type=int, default=4, help="epochs after the removal")
    args = parser.parse_args()
    logging.getLogger("lightning_prune").setLevel(logging.ERROR)
    settings = {name: getattr(args, name) for name in ("network", "macs", "subset", "dense", "finetune")}
    tried = [
        *((name, 1) for name in PLAIN),
        *((m, n) for n in (args.candidates // 10, args.candidates) for m in SEARCHES),
    ]
    found: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for seed in args.seeds:
        for method, candidates in tried:
            key = {"method": method, "candidates": candidates, "seed": seed, **settings}
            folder = args.results.parent / "starts"
            work = None if args.known else lambda k=key, f=folder: run(k, args.root, f, args.finetune)
            line = remembered(args.results, key, work)
            if line is not None:
                found.setdefault((method, candidates), {})[seed] = line
    if (UNIFORM, 1) not in found:
        raise SystemExit(f"{args.results} holds none of these runs: leave out --known to train them.")
    publish(page(found, args), args.out)


if __name__ == "__main__":
    main()
