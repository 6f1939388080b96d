r"""How cost grows with the network, from 1 M to 300 M parameters: a step, memory, the removal of weights and channels.

    python -m tests.benchmarks.scale --out tests/benchmarks/scale.md --image docs/images/scale.png

Each network runs in processes of its own, on tiny images, one thread; the plain and the masked step in turn. Seconds
are those of the process's CPU. A network's numbers are remembered as a line of the results, so that a stopped command
goes on. The largest network takes 7 GiB and some CPU minutes; the plot needs matplotlib. Growth is the exponent p of a
least-squares fit of cost = c·parametersᵖ on a log-log scale: 1 is linear.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

from lightning_prune import LTPCallback
from lightning_prune.channels import ChannelGraph, prune_channels
from lightning_prune.masks import attach, detach
from lightning_prune.plots.figure import new_figure
from tests.benchmarks.bench.pipelines import kept_arguments, publish, remembered_each, stamps
from tests.benchmarks.step_cost import Stepper

NETWORKS: dict[str, int] = {  # image size
    "mobilenetv3_small_050": 64, "mobilenetv3_small_100": 64, "resnet18": 64, "resnet50": 64, "resnet152": 32,
    "vit_base_patch16_224": 32, "convnext_large": 32, "vit_large_patch16_224": 32,
}  # fmt: skip
BATCH = 2
RESULTS = Path(__file__).parent / "results" / "scale.jsonl"
Numbers = dict[str, Any]
COSTS: dict[str, tuple[str, Callable[[Numbers], float]]] = {  # what is fitted: unit, of a network's numbers
    "what LTP adds to a step": ("s", lambda n: max(n["masked"] - n["plain"], 1e-4)),
    "the memory of its masks": ("MiB", lambda n: max(n["memory"], 0.1)),
    "the removal of weights": ("s", lambda n: n["removal"]),
    "the removal of channels": ("s", lambda n: n["trace"] + n["prune"]),
}


def measure(name: str, pairs: int) -> Numbers:
    """What LTP at 90 % costs on a network: CPU seconds of steps and of the removal, MiB that the masks take."""
    torch.set_num_threads(1)
    stepper = Stepper(name, NETWORKS[name], BATCH, sized(name))
    stepper.optimizer = torch.optim.SGD(stepper.module.parameters(), lr=1e-3)
    stepper.trainer.strategy.optimizers = [stepper.optimizer]
    stepper.step()
    before = memory()
    callback = LTPCallback(target_sparsity=0.9, recalibrate_batches=0)
    stepper.begin(callback)
    stepper.step()
    gc.collect()
    grown = memory() - before
    plain, masked = [], []
    for _ in range(pairs):
        masked.append(stepper.step())
        detach(stepper.module)
        stepper.callback = None
        plain.append(stepper.step())
        attach(stepper.module, callback._gates)
        stepper.callback = callback
    stepper.optimizer.zero_grad()
    was, start = peak(), time.process_time()
    with torch.no_grad():
        callback.remove(stepper.trainer, stepper.module, early=False)
    removal = time.process_time() - start
    assert sum(callback.zeros_at_prune) >= round(0.9 * callback.units.numel)
    return {
        "parameters": sum(p.numel() for p in stepper.module.parameters()), "weights": callback.units.numel,
        "plain": statistics.median(plain), "masked": statistics.median(masked), "memory": grown / 2**20,
        "removal": removal, "removal memory": max(0, peak() - was) / 2**20,
    }  # fmt: skip


def channels(name: str) -> Numbers:
    """What halving the MACs costs, by the L1 norm: CPU seconds of the trace and the rest, MiB that it adds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = NETWORKS[name]
    prune_channels(timm.create_model("test_resnet"), torch.randn(2, 3, 64, 64), score="l1", ratio=0.3)  # first calls
    model, batch = timm.create_model(name, num_classes=100, **sized(name)).eval(), torch.randn(BATCH, 3, size, size)
    whole, was, start = sum(p.numel() for p in model.parameters()), memory(), time.process_time()
    graph = ChannelGraph.trace(model, batch)
    traced = time.process_time()
    prune_channels(model, batch, score="l1", macs=0.5, graph=graph)
    left = sum(p.numel() for p in model.parameters()) / whole
    assert left < 0.9
    return {
        "trace": traced - start, "prune": time.process_time() - traced, "left": left,
        "prune memory": max(0, peak() - was) / 2**20,
    }  # fmt: skip


def sized(name: str) -> dict[str, Any]:
    """What makes a network for images of its size."""
    return {"img_size": NETWORKS[name]} if name.startswith("vit") else {}


def memory() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of the fit cost = c·sizeᵖ."""
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    return statistics.linear_regression(x, y).slope


def draw(lines: Mapping[str, Numbers], file: Path) -> None:
    """Each cost over the prunable weights, on log-log axes, with the line of linear growth from the largest network."""
    figure = new_figure(11, 2.8)
    sizes = [n["weights"] for n in lines.values()]
    for ax, (what, (unit, cost)) in zip(figure.subplots(1, len(COSTS)), COSTS.items(), strict=True):
        costs = [cost(n) for n in lines.values()]
        ax.loglog(sizes, costs, "o", markersize=4)
        ax.loglog(sizes, [costs[-1] * s / sizes[-1] for s in sizes], color="0.6", linewidth=1, label="linear")
        ax.set(xlabel="prunable weights", ylabel=unit, title=what)
        ax.legend(fontsize=7)
    figure.savefig(file, dpi=80)


def page(lines: Mapping[str, Numbers], image: bool) -> str:
    """The tables, and the growth of each cost."""
    head = [
        "network", "px", "parameters", "plain step, s", "LTP adds, s", "ratio", "masks, MiB", "removal, s",
        "it adds, MiB",
    ]  # fmt: skip
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, n in lines.items():
        cells = [
            name, str(NETWORKS[name]), f"{n['parameters'] / 1e6:.1f} M", f"{n['plain']:.3f}",
            f"{n['masked'] - n['plain']:.3f}", f"{n['masked'] / n['plain']:.2f}", f"{n['memory']:.0f}",
            f"{n['removal']:.2f}", f"{n['removal memory']:.0f}",
        ]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    structured = ["| network | trace, s | score, cut and proof, s | parameters left | it adds, MiB |", "|" + "---|" * 5]
    for name, n in lines.items():
        cells = [name, f"{n['trace']:.2f}", f"{n['prune']:.2f}", f"{n['left']:.0%}", f"{n['prune memory']:.0f}"]
        structured.append("| " + " | ".join(cells) + " |")
    sizes = [n["weights"] for n in lines.values()]

    def fits(least: float) -> str:
        some = [i for i, size in enumerate(sizes) if size >= least]
        if len(some) < 2:
            return "too few networks"
        values = {what: [cost(n) for n in lines.values()] for what, (_, cost) in COSTS.items()}
        return ", ".join(
            f"{what} {exponent([sizes[i] for i in some], [v[i] for i in some]):.2f}" for what, v in values.items()
        )

    picture = ["![Costs over the number of weights](../../docs/images/scale.png)", ""]
    return "\n".join([
        f"LTP to 90 % zeros on growing networks, batch {BATCH} of tiny images: such a step is little else than its "
        "weights, so the ratio is the highest there is (of 32 images or more a step: `step_cost`). The memory of the "
        "masks is beside parameters, gradients and activations; what the removal adds is on top of the most that "
        "training had taken, here by SGD without momentum.",
        "", *rows, "",
        "The removal of channels, `prune_channels(score=\"l1\", macs=0.5)` with its proof on the same networks and "
        "images; what it adds is on top of the network itself.",
        "", *structured, "",
        f"Growth, the exponent of prunable weights (1: linear), over all networks: {fits(0)}. Small networks pay for "
        f"layers more than for weights; of those with 10 M weights or more: {fits(1e7)}.",
        "", *(picture if image else ()),
        *stamps(lines.values()), "Seconds of CPU, one thread, on a machine shared with other work.",
    ]) + "\n"  # fmt: skip


def apart(name: str, pairs: int) -> Numbers:
    """A network's numbers, measured in two processes."""
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:  # what is imported is imported once
        return pool.apply(measure, (name, pairs)) | pool.apply(channels, (name,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--pairs", type=int, default=5)
    kept_arguments(parser, RESULTS)
    parser.add_argument("--image", type=Path, help="plot to draw")
    args = parser.parse_args()
    keys = {name: {"network": name, "pairs": args.pairs} for name in args.networks}
    lines = remembered_each(args, keys, partial(apart, pairs=args.pairs))
    if args.image is not None:
        draw(lines, args.image)
    publish(page(lines, args.image is not None), args.out)


if __name__ == "__main__":
    main()
