"""What a latency target gives: asked, found by the search, and measured again.

    python -m tests.benchmarks.latency_targets --out tests/benchmarks/latency_targets.md
    python -m tests.benchmarks.latency_targets --clock cpu    # on a machine that does other work too

Weights are random and channels are ranked by the l2 norm of their filters: this is about time alone.
"""

from __future__ import annotations

import argparse
import datetime
import os
import time
from pathlib import Path

import timm
import torch
from torch import nn

from lightning_prune import ChannelGraph, ChannelUnits
from lightning_prune.channels.latency.kept import clock_name
from lightning_prune.channels.latency.meter import Meter, compare_loaded
from lightning_prune.channels.latency.search import LatencySearch
from lightning_prune.channels.remove import remove_channels
from lightning_prune.channels.select.selector import Selector
from lightning_prune.export.meter import OnnxMeter
from lightning_prune.scores import find_score
from lightning_prune.scoring.collect import collect, run_network
from lightning_prune.scoring.scope import importance

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
HEAD = ("network", "asked", "search", "again", "MACs left", "layers timed", "networks timed", "minutes")


class Counted(OnnxMeter):
    """onnxruntime that counts the networks it loads."""

    loaded = 0

    def load(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.loaded += 1
        return super().load(*args, **kwargs)


def compare_thrice(meter: Meter, dense: nn.Module, small: nn.Module, x: torch.Tensor) -> list[float]:
    """Three medians of pairs of calls, on files of their own."""
    first, second = (meter.load(network, x, 1) for network in (dense, small))
    return [compare_loaded(meter, first, second, 1, pairs=27).ratio for _ in range(3)]


def row(name: str, target: float, size: int, divisor: int, clock: str) -> tuple[str, ...]:
    """One network at one target, as a row of the table."""
    torch.manual_seed(0)
    model, x = timm.create_model(name).eval(), torch.randn(2, 3, size, size)
    start, meter = time.perf_counter(), Counted(CLOCKS[clock])
    units = ChannelUnits.of(model, ChannelGraph.trace(model, x))
    selector = Selector(units, rule=None, budget=None, delta=0.0, min_channels=0.05, divisor=divisor)
    rating = find_score("l2")
    score = importance(rating, units, collect(rating, units, (), run_network(model), module=model), "isomorphic")
    search = LatencySearch(selector, meter, batch=1)
    aim = search.aim(score, x, target)
    took, dense = time.perf_counter() - start, timm.create_model(name).eval()
    pruned = remove_channels(model, x, selector, aim.selection, verify=False, constants="drop")
    again = compare_thrice(meter, dense, model, x)
    macs = pruned.macs[1] / pruned.macs[0]
    counts = (len(search.known), meter.loaded - 2)
    spread = " ".join(f"{ratio:.3f}" for ratio in sorted(again))
    return (name, f"{target:g}", f"{aim.ratio:.3f}", spread, f"{macs:.3f}", *map(str, counts), f"{took / 60:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "mobilenetv2_100", "convnext_atto"])
    parser.add_argument("--targets", nargs="+", type=float, default=[0.5])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--divisor", type=int, default=8)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    meter: Meter = OnnxMeter()
    page = [
        "# Latency targets",
        "",
        f"`python -m tests.benchmarks.latency_targets`: {clock_name(meter)}; batch 1, {args.size} pixels, divisor "
        f"{args.divisor}, {args.clock} time, load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores; "
        f"{datetime.date.today()}, torch {torch.__version__}, timm "
        f"{timm.__version__}.",
        "",
        "Latency of the compact network as a share of the dense one's: *asked*, as the *search* measured it (median of",
        "27 pairs of calls in turn), and measured *again* on the network that came out (three such medians).",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + " --- |" * len(HEAD),
    ]
    for name in args.networks:
        for target in args.targets:
            page.append("| " + " | ".join(row(name, target, args.size, args.divisor, args.clock)) + " |")
            print(page[-1], flush=True)
            if args.out is not None:
                args.out.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
