"""What a method adds to a training step: the same step with and without the callback, in turn, in one process.

    python -m tests.benchmarks.step_cost --threads 1 --pairs 15 [--fuse] [--gate sigmoid] [--method mrts]

Prints the median ratio of process CPU times for each network, its spread, and beside it the floor: a copy and one
multiply per weight. ``--memory NAME SIZE`` prints the growth of the peak memory instead (one network a process; with
glibc, set MALLOC_MMAP_THRESHOLD_=65536, or the allocator's own wandering is of the masks' size).
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import time
from typing import Any

import lightning
import timm
import torch
from torch.nn import functional as F

from lightning_prune import LTPCallback, MRTSCallback, PruningCallback, TimmClassifier
from lightning_prune.callbacks.phases import Phases

CASES = [("resnet18", 64, 1.10), ("efficientnet_b0", 96, 1.03), ("mixnet_s", 96, 1.05), ("efficientnet_b0", 224, 1.03)]


METHODS: dict[str, Any] = {"ltp": LTPCallback, "mrts": MRTSCallback}


class Stepper:
    """One network, its optimizer and data; ``step`` trains it once, with the callback that ``begin`` was given."""

    def __init__(self, name: str, size: int, batch: int, model_kwargs: dict[str, Any] | None = None) -> None:
        torch.manual_seed(0)
        self.module = TimmClassifier(name, in_chans=3, num_classes=100, model_kwargs=model_kwargs)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-3, momentum=0.9)
        self.batch = torch.randn(batch, 3, size, size), torch.randint(0, 100, (batch,))
        self.callback: PruningCallback | None = None
        # Logged steps, one in 50 by default, count zeros besides; none is logged here.
        self.trainer: Any = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            log_every_n_steps=0,
        )  # fmt: skip
        self.trainer.fit_loop.max_batches = 1000
        self.trainer.strategy.optimizers = [self.optimizer]

    def begin(self, callback: PruningCallback) -> None:
        """The sparsify phase, whose first batch is the next."""
        self.callback = callback
        callback.prepare(self.trainer, self.module)
        callback.phases = Phases(0, 200, 300)
        callback._guard.watch([self.optimizer], callback.watched())

    def step(self) -> float:
        """CPU seconds of one."""
        start = time.process_time()
        if self.callback is not None:
            self.callback.on_train_batch_start(self.trainer, self.module, self.batch, 0)
        self.optimizer.zero_grad()
        x, y = self.batch
        F.cross_entropy(self.module(x), y).backward()
        if self.callback is not None:
            self.callback.on_before_optimizer_step(self.trainer, self.module, self.optimizer)
        self.optimizer.step()
        if self.callback is not None:
            self.callback.seen += 1
        return time.process_time() - start


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


def compare(name: str, size: int, batch: int, pairs: int, method: str, options: dict[str, Any]) -> str:
    """One row: median ratio, its range, and the floor's share of the plain step."""
    plain, masked = Stepper(name, size, batch), Stepper(name, size, batch)
    masked.begin(METHODS[method](**options))
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
    stepper = Stepper(name, size, batch)
    for _ in range(4):
        stepper.step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    callback = LTPCallback()
    stepper.begin(callback)
    for _ in range(4):
        stepper.step()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    copy = sum(t.numel * 4 for t in callback.units.targets) / 2**20
    return f"{name}@{size}: peak {before / 1024:.0f} -> {after / 1024:.0f} MiB; a copy of the weights is {copy:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="*", help="networks to run")
    parser.add_argument("--method", default="ltp", choices=list(METHODS))
    parser.add_argument("--fuse", action="store_true", help="the masks compiled")
    parser.add_argument("--gate", choices=["fading", "held", "sigmoid"], help="of LTP")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "SIZE"))
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    if args.memory:
        print(peak_memory(args.memory[0], int(args.memory[1]), args.batch))
        return
    print(f"torch {torch.__version__}, timm {timm.__version__}, {args.threads} threads, {args.pairs} pairs")
    options = {"fuse": True} if args.fuse else {}
    options |= {"gate": args.gate} if args.gate else {}
    for name, size, bound in CASES:
        bound = 1.02 if args.method == "mrts" else bound
        if not args.only or name in args.only:
            print(f"{compare(name, size, args.batch, args.pairs, args.method, options)} (bound {bound})", flush=True)


if __name__ == "__main__":
    main()
