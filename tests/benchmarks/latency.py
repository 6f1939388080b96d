"""CPU latency of compact models at half the MACs, and of their training steps, beside the dense ones in one process.

    python -m tests.benchmarks.latency --threads 1 --divisors 1 8 16

Channels are chosen by MRTS's rule from random scale factors: speed depends on how many stay where, not on which.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import timm
import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune import ChannelGraph
from lightning_prune.channels.latency.meter import EagerMeter, compare
from lightning_prune.channels.remove import remove_channels
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits

CASES = [("resnet18", 224), ("mixnet_s", 224), ("efficientnet_b0", 224)]


def compact(dense: nn.Module, x: torch.Tensor, share: float, divisor: int) -> tuple[nn.Module, float]:
    """A compact copy, and the share of the MACs that it has."""
    model = copy.deepcopy(dense)
    graph = ChannelGraph.trace(model, x)
    units = ChannelUnits.of(model, graph, scales_only=True)
    assert units.scales is not None
    selector = Selector(units, rule="css", budget=("macs", share), delta=1e-3, min_channels=0.05, divisor=divisor)
    selection = selector.select(units.from_scales(units.scales.importance(units.scales.read())))
    return model, remove_channels(model, x, selector, selection).selection.macs


def step_ratio(dense: nn.Module, small: nn.Module, x: torch.Tensor, rounds: int) -> float:
    """Median ratio of training steps, compact / dense, in turn."""
    y = torch.zeros(len(x), dtype=torch.int64)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for m in (dense, small)]
    times: list[list[float]] = [[], []]
    for i in range(rounds + 1):
        for which in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            F.cross_entropy((dense, small)[which].train()(x), y).backward()
            optimizers[which].step()
            optimizers[which].zero_grad()
            if i:
                times[which].append(time.perf_counter() - start)
    return statistics.median(b / a for a, b in zip(*times, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--divisors", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, timm {timm.__version__}, {args.threads} threads")
    for name, size in CASES:
        if args.only and name not in args.only:
            continue
        torch.manual_seed(0)
        dense = timm.create_model(name, num_classes=10)
        for m in dense.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.2, 1.0)
        x = torch.randn(2, 3, size, size)
        for divisor in args.divisors:
            small, macs = compact(dense, x, args.share, divisor)
            for batch in args.batches:
                latency = compare(EagerMeter(), dense, small, x, batch)
                print(f"{name}@{size}, divisor {divisor}, {macs:.3f} of the MACs: {latency}")
            ratio = step_ratio(dense, small, torch.randn(8, 3, size, size), 5)
            print(f"{name}@{size}, divisor {divisor}: training step at batch 8 {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
