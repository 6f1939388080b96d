r"""How cost grows with the network, from 2 M to 300 M parameters: a step, memory, the removal.

    python -m tests.benchmarks.scale --out tests/benchmarks/scale.md

Each network runs in a process of its own, on tiny images, one thread; the plain and the masked step in turn. Seconds
are those of the process's CPU. Growth is the exponent p of a least-squares fit of cost = c·parametersᵖ on a log-log
scale: 1 is linear.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import logging
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import lightning
import timm
import torch

from lightning_prune import LTPCallback
from lightning_prune.masks import attach, detach
from tests.benchmarks.step_cost import Stepper

NETWORKS: dict[str, int] = {  # image size
    "mobilenetv3_small_050": 64, "mobilenetv3_small_100": 64, "resnet18": 64, "resnet50": 64, "resnet152": 32,
    "vit_base_patch16_224": 32, "convnext_large": 32, "vit_large_patch16_224": 32,
}  # fmt: skip
BATCH = 2
Numbers = dict[str, float]


def measure(name: str, pairs: int) -> Numbers:
    """What LTP at 90 % costs on a network: CPU seconds of steps and of the removal, MiB that the masks take."""
    torch.set_num_threads(1)
    size = NETWORKS[name]
    stepper = Stepper(name, size, BATCH, {"img_size": size} if name.startswith("vit") else None)
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


def page(rows: dict[str, Numbers]) -> str:
    """The table, and the growth of each column."""
    head = [
        "network", "px", "parameters", "plain step, s", "LTP adds, s", "ratio", "masks, MiB", "removal, s",
        "it adds, MiB",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, n in rows.items():
        cells = [
            name, str(NETWORKS[name]), f"{n['parameters'] / 1e6:.1f} M", f"{n['plain']:.3f}",
            f"{n['masked'] - n['plain']:.3f}", f"{n['masked'] / n['plain']:.2f}", f"{n['memory']:.0f}",
            f"{n['removal']:.2f}", f"{n['removal memory']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    sizes = [n["weights"] for n in rows.values()]
    growth = {
        "what LTP adds to a step": [max(n["masked"] - n["plain"], 1e-4) for n in rows.values()],
        "the memory of its masks": [max(n["memory"], 0.1) for n in rows.values()],
        "the removal": [n["removal"] for n in rows.values()],
    }
    fits = ", ".join(f"{what} {exponent(sizes, costs):.2f}" for what, costs in growth.items())
    return "\n".join([
        f"LTP to 90 % zeros on growing networks, batch {BATCH} of tiny images: such a step is little else than its "
        "weights, so the ratio is the highest there is (of 32 images or more a step: `step_cost`). The memory of the "
        "masks is beside parameters, gradients and activations; what the removal adds is on top of the most that "
        "training had taken.",
        "", *lines, "",
        f"Growth, the exponent of prunable weights (1: linear): {fits}.",
        "",
        f"Measured {datetime.date.today()}, seconds of CPU, one thread, on a machine shared with other work; "
        f"torch {torch.__version__}, lightning {lightning.__version__}, timm {timm.__version__}.",
    ]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="page to write")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows: dict[str, Numbers] = {}
    for name in args.networks:
        with multiprocessing.get_context("fork").Pool(1) as pool:  # what is imported is imported once
            rows[name] = pool.apply(measure, (name, args.pairs))
        print(name, rows[name], flush=True)
        if args.out is not None and len(rows) > 1:
            args.out.write_text(page(rows))


if __name__ == "__main__":
    main()
