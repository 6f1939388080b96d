"""How long surgery takes, next to Torch-Pruning: the two in turn, in one process, and whether what comes out is right.

    python -m tests.benchmarks.surgery --out tests/benchmarks/surgery.md

In each network 40 % of the channel groups are silenced (BatchNorm scale and shift zero), and both tools are asked for
the 30 % with the smallest scale factors. So what is right is known without either: the output may not change. Ours is
timed from trace to compact model, with its proof and without; Torch-Pruning, a peer and no dependency, has none. Where
it is not installed its columns stay empty. Times are CPU seconds, so other jobs disturb little.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lightning_prune.channels import ChannelGraph, prune_channels
from tests.sweep.channels_cost import peer
from tests.sweep.networks import is_norm, randomise

NETWORKS = (
    "resnet18", "resnet50", "efficientnet_b0", "mobilenetv3_large_100", "regnety_008", "mixnet_s", "res2net50_26w_4s",
    "cspresnet50", "dla34", "hrnet_w18_small", "vgg16_bn", "densenet121",
)  # fmt: skip
SILENT = 0.4


def prepared(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """A network with random scale factors, a share of its groups silent, and a batch of two."""
    torch.manual_seed(0)
    model, batch = timm.create_model(name), torch.randn(2, 3, size, size)
    randomise(model, batch)
    graph = ChannelGraph.trace(model, batch)
    silent = torch.rand(graph.size, generator=torch.Generator().manual_seed(1)) < SILENT
    for path in graph.norms:
        ids, norm = graph.scale_ids(path), model.get_submodule(path)
        if ids is not None:
            off = (ids >= 0) & silent[ids.clamp_min(0)]
            norm.weight.data[off] = 0.0
            norm.bias.data[off] = 0.0
    return model, batch


def ours(model: nn.Module, batch: Tensor, verify: bool = True) -> str:
    """CPU seconds, or how it ended."""
    scores = {path: m.weight.detach().abs() for path, m in model.named_modules() if is_norm(m)}
    start = time.process_time()
    try:
        prune_channels(model, batch, scores=scores, ratio=0.3, verify=verify)
    except Exception as error:
        return type(error).__name__
    return f"{time.process_time() - start:.2f}"


def judged(tool: Callable[[Any, Tensor], str], dense: nn.Module, batch: Tensor) -> tuple[str, str]:
    """(CPU seconds or how it ended, what came out) of a tool on a copy."""
    model = copy.deepcopy(dense)
    found = tool(model, batch)
    if not found.replace(".", "").isdigit():
        return found, "-"
    size, whole = (sum(p.numel() for p in m.parameters()) for m in (model, dense))
    if size == whole:
        return found, "nothing removed"
    with torch.no_grad():
        wanted, out = dense(batch), model.eval()(batch)
    wrong = out.shape != wanted.shape or float((out - wanted).abs().max() / wanted.abs().max()) > 1e-3
    return found, f"{'wrong' if wrong else 'right'}, {1 - size / whole:.0%} of the parameters gone"


def measure(name: str, size: int, times: int) -> list[str]:
    """A row of the table."""
    dense, batch = prepared(name, size)
    tools = (ours, partial(ours, verify=False), partial(peer, everywhere=True))
    runs = [[judged(tool, dense, batch) for tool in tools] for _ in range(times)]
    cells = [name]
    for tool in zip(*runs, strict=True):
        numbers = [float(found) for found, _ in tool if found.replace(".", "").isdigit()]
        cells += [f"{statistics.median(numbers):.2f}" if numbers else tool[0][0], tool[0][1]]
    return cells


def section(rows: list[list[str]], size: int) -> list[str]:
    """The lines of one size of images."""
    numbers = slice(1, None, 2)
    both = [[*map(float, r[numbers])] for r in rows if r[2].startswith("right") and r[6].startswith("right")]
    told = "No network yet where both are right."
    if both:
        own, bare, other = (statistics.median(column) for column in zip(*both, strict=True))
        told = (
            f"On the {len(both)} where both are right the median is {own:.2f} s of ours with its proof, {bare:.2f} s "
            f"without, and {other:.2f} s of Torch-Pruning's; with the proof ours is the faster on "
            f"{sum(a < c for a, _, c in both)}, without on {sum(b < c for _, b, c in both)}."
        )
    return [
        f"## {size} px, {len(rows)} of {len(NETWORKS)} networks",
        "",
        told,
        "",
        "| network | ours, s | ours | without the proof, s | without the proof | Torch-Pruning, s | Torch-Pruning |",
        "|" + "---|" * 7,
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def page(found: dict[int, list[list[str]]], times: int) -> str:
    """The dated page; found: rows of each size."""
    lines = [
        "# How long surgery takes",
        "",
        f"{datetime.date.today()}, torch {torch.__version__}, timm {timm.__version__}, CPU, one thread, batch of 2, "
        f"medians of {times} in CPU seconds. The tools took turns in one process; other jobs ran on the cores, so the "
        "seconds are upper bounds. The proof runs on one sample of at most 64 px where a network makes the same calls "
        "on it, else on the given batch; in float64 where float32 does not tell, which it does not where a network "
        "amplifies rounding (mixnet_s). Regenerate with `python -m tests.benchmarks.surgery`.",
        "",
        *(line for size, rows in found.items() for line in section(rows, size)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--size", type=int, nargs="+", default=(224, 96), help="pixels")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, help="page to write, again after each network")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ours(*prepared("test_resnet", 96))  # what only a first call costs
    found: dict[int, list[list[str]]] = {}
    for size, name in itertools.product(args.size, args.networks):
        row = measure(name, size, args.times)
        found.setdefault(size, []).append(row)
        print(size, *row, sep=" | ", flush=True)
        if args.out:
            args.out.write_text(page(found, args.times))


if __name__ == "__main__":
    main()
