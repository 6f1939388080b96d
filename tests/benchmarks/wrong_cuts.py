"""Whether the proof sees a cut that is wrong by one channel, in float32 as in float64.

    python -m tests.benchmarks.wrong_cuts --out tests/benchmarks/wrong_cuts.md

Of each network a right plan is made, and in one dim of one tensor at a time one kept index is swapped for a removed
one. Layer scales are 1e-6 and their like, as in a fresh network, so that little of a branch reaches the output.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import random
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_prune.channels import ChannelGraph, prune_channels
from lightning_prune.channels.verify import compare
from lightning_prune.channels.verify.compare import Proof, check_plan
from lightning_prune.plan.plan import PruningPlan
from tests.channels.verify.wrong import broken
from tests.sweep.channels_table import RATIO
from tests.sweep.networks import build

NETWORKS = (
    "test_resnet", "test_byobnet", "test_efficientnet", "test_vit", "test_convnext", "test_maxvit", "resnet18",
    "mobilenetv3_small_050", "ghostnet_050", "convnext_atto", "deit3_small_patch16_224",
)  # fmt: skip


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    """A random network with faint layer scales, and a batch."""
    model, batch = build(name)
    generator = torch.Generator().manual_seed(0)
    for key, p in model.named_parameters():
        if key.endswith("gamma"):
            p.data = 1e-6 * (1 + torch.rand(p.shape, generator=generator))
    return model, batch


def right(name: str) -> PruningPlan:
    """The plan of a network by the norm of filters."""
    return prune_channels(*prepared(name), score="l1", ratio=RATIO).plan


def exact(model: nn.Module, plan: PruningPlan, batch: Tensor) -> Proof:
    """What float64 alone says."""
    first, compare._by_layers = compare._by_layers, lambda *_: None
    try:
        return check_plan(model, plan, batch)
    finally:
        compare._by_layers = first


def measure(name: str, most: int) -> tuple[str, str, int, int, int, int]:
    """A row: network, what proves its right plan, wrong plans, refused by float32, by float64, by float64 alone."""
    plan, (model, batch) = right(name), prepared(name)
    program = ChannelGraph.trace(model, batch).program
    own = check_plan(model, plan, batch, program=program)
    cases = broken(plan, training=False)
    seen32 = seen64 = missed = 0
    chosen = random.Random(0).sample(cases, min(most, len(cases)))
    for wrong in chosen:
        found = check_plan(model, wrong, batch, program=program)
        passed = found.dtype == torch.float32
        equal = exact(model, wrong, batch).equal if passed else found.equal
        seen32, seen64, missed = seen32 + (not passed), seen64 + (not equal), missed + (passed and not equal)
    dtype = str(own.dtype).removeprefix("torch.")
    return name, f"{dtype}, {own.difference:.0e}", len(chosen), seen32, seen64, missed


def page(rows: list[tuple[str, str, int, int, int, int]]) -> str:
    """The dated page."""
    total = [sum(column) for column in list(zip(*rows, strict=True))[2:]]
    lines = [
        "# Cuts that are wrong by one channel",
        "",
        f"{datetime.date.today()}, torch {torch.__version__}, CPU, random weights, {RATIO:.0%} of the channels cut. In "
        "each wrong plan one kept index of one cut is swapped for a removed one. Regenerate with "
        "`python -m tests.benchmarks.wrong_cuts`.",
        "",
        f"Of {total[0]} wrong plans float32, layer by layer, does not take {total[1]} for right, and float64, by the "
        f"output, {total[2]}. Those that float32 lets pass and float64 would not: {total[3]}.",
        "",
        "| network | right plan | wrong plans | not passed by float32 | refused by float64 | by float64 alone |",
        "|---|---|---|---|---|---|",
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--most", type=int, default=60, help="wrong plans of a network")
    parser.add_argument("--out", type=Path, help="page to write, again after each network")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name in args.networks:
        rows.append(measure(name, args.most))
        print(*rows[-1], sep=" | ", flush=True)
        if args.out:
            args.out.write_text(page(rows))


if __name__ == "__main__":
    main()
