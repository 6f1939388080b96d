"""What a method adds to a training step: the same step with and without the callback, in turn, in one process.

    python -m tests.benchmarks.step_cost --threads 1 --pairs 15 [--fuse | --method mrts]

Prints the median ratio of process CPU times for each network, its spread, and beside it the floor: a copy and one
multiply per weight. ``--memory NAME SIZE`` prints the growth of the peak memory instead (one network a process; with
glibc, set MALLOC_MMAP_THRESHOLD_=65536, or the allocator's own wandering is of the masks' size).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch.nn import functional as F

from lightning_prune import ChannelGraph, LTPCallback, MRTSCallback, TimmClassifier
from lightning_prune.callbacks.phases import Phases
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.selector import Chooser

CASES = [("resnet18", 64, 1.10), ("efficientnet_b0", 96, 1.03), ("mixnet_s", 96, 1.05), ("efficientnet_b0", 224, 1.03)]


class Stepper:
    """One network, its optimizer and data; ``step`` trains it once, under the callback where ``masked``."""

    def __init__(self, name: str, size: int, batch: int, masked: str, fuse: bool = False) -> None:
        torch.manual_seed(0)
        self.module = TimmClassifier(name, in_chans=3, num_classes=100)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-3, momentum=0.9)
        self.x, self.y = torch.randn(batch, 3, size, size), torch.randint(0, 100, (batch,))
        self.callback = None
        self.trainer: Any = SimpleNamespace(_logger_connector=SimpleNamespace(should_update_logs=False))
        if masked == "mrts":
            push(self.module, self.optimizer, self.x)
        elif masked:
            self.callback = LTPCallback(fuse=fuse)
            self.callback._prepare(self.module)
            self.callback.phases = Phases(0, 200, 300)
            self.callback._begin()
            # Logged steps, one in 50 by default, count zeros besides; the rest do not.

    def step(self) -> float:
        start = time.process_time()
        if self.callback is not None:
            self.callback.on_train_batch_start(self.trainer, self.module, None, 0)
        self.optimizer.zero_grad()
        F.cross_entropy(self.module(self.x), self.y).backward()
        if self.callback is not None:
            self.callback.on_before_optimizer_step(self.trainer, self.module, self.optimizer)
            self.callback.seen += 1
        self.optimizer.step()
        if self.callback is not None:
            self.callback._expire()
        return time.process_time() - start


def push(module: TimmClassifier, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    """Begin MRTS's sparsify phase on a module: a push of all scale factors follows each step of the optimizer."""
    callback = MRTSCallback()
    callback.network, callback.phases, callback.stage = module.model, Phases(0, 200, 300), "soft"
    graph = ChannelGraph.trace(module.model, x[:2])
    factors = ScaleFactors.of(module.model, graph)
    callback.chooser = Chooser(
        module.model, graph, factors, callback.rule, callback.budget, callback.delta, callback.min_keep, 1
    )
    callback.start(factors)
    callback.chosen(factors, callback.chooser.choose(callback.sizes(factors)))
    optimizer.register_step_post_hook(callback._after_step)


def floor(module: torch.nn.Module) -> float:
    """CPU seconds of a copy and one in-place multiply per prunable weight."""
    weights = [m.weight.detach() for m in module.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    grads, masks = [w.clone() for w in weights], [torch.ones_like(w) for w in weights]
    times = []
    for _ in range(9):
        start = time.process_time()
        for w, g, m in zip(weights, grads, masks, strict=True):
            w.clone()
            g.mul_(m)
        times.append(time.process_time() - start)
    return statistics.median(times)


def compare(name: str, size: int, batch: int, pairs: int, method: str, fuse: bool) -> str:
    """One row: median ratio, its range, and the floor's share of the plain step."""
    plain, masked = Stepper(name, size, batch, ""), Stepper(name, size, batch, method, fuse)
    ratios, base = [], []
    for i in range(pairs + 2):
        first, second = (plain, masked) if i % 2 else (masked, plain)
        times = {id(first): first.step(), id(second): second.step()}
        if i >= 2:
            base.append(times[id(plain)])
            ratios.append(times[id(masked)] / times[id(plain)])
    low = floor(plain.module) / statistics.median(base)
    return (
        f"{name}@{size} batch {batch}: {statistics.median(ratios):.3f} [{min(ratios):.3f}-{max(ratios):.3f}], "
        f"floor {1 + low:.3f}, plain step {statistics.median(base):.3f} s CPU"
    )


def peak_memory(name: str, size: int, batch: int) -> str:
    """How much the peak of the process grows when the masks come on, next to one copy of the masked weights."""
    stepper = Stepper(name, size, batch, "")
    for _ in range(4):
        stepper.step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    masked = Stepper.__new__(Stepper)
    masked.__dict__.update(stepper.__dict__)
    masked.callback = LTPCallback()
    masked.callback._prepare(masked.module)
    masked.callback.phases = Phases(0, 200, 300)
    masked.callback._begin()
    masked.trainer = SimpleNamespace(_logger_connector=SimpleNamespace(should_update_logs=False))
    for _ in range(4):
        masked.step()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    copy = sum(t.numel * 4 for t in masked.callback.targets) / 2**20
    return f"{name}@{size}: peak {before / 1024:.0f} -> {after / 1024:.0f} MiB; a copy of the weights is {copy:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="*", help="networks to run")
    parser.add_argument("--method", default="ltp", choices=["ltp", "mrts"])
    parser.add_argument("--fuse", action="store_true", help="the masks compiled")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "SIZE"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print(peak_memory(args.memory[0], int(args.memory[1]), args.batch))
        return
    print(f"torch {torch.__version__}, timm {timm.__version__}, {args.threads} threads, {args.pairs} pairs")
    for name, size, bound in CASES:
        bound = 1.02 if args.method == "mrts" else bound
        if not args.only or name in args.only:
            print(f"{compare(name, size, args.batch, args.pairs, args.method, args.fuse)} (bound {bound})", flush=True)


if __name__ == "__main__":
    main()
