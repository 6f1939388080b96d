"""What surgery costs, next to Torch-Pruning in the same process: CPU seconds and memory, one process for each model.

    python -m tests.sweep.channels_cost --out tests/sweep/channels_cost.md resnet18 mixnet_s ...

Both remove about 30 % of the channels by random scores at 96 px. Ours includes tracing, the proof and the
cutting; Torch-Pruning has no proof. Torch-Pruning is a peer to compare with, not a dependency: without it, its column
stays empty.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.sweep.channels_table import RATIO
from tests.sweep.limit import OutOfTime, cpu_limit
from tests.sweep.networks import is_norm, randomise


def memory(key: str) -> int:
    """A line of /proc/self/status in MiB: VmRSS is now, VmHWM is the peak since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) >> 10


def peer(model: torch.nn.Module, batch: torch.Tensor, everywhere: bool = False, limit: float = 30) -> str:
    """Torch-Pruning on the same model: CPU seconds, or how it ended.

    everywhere: whether the lowest scores of the whole model go, or the same share of each layer. limit: CPU seconds.
    """
    try:
        import torch_pruning as tp
    except ImportError:
        return "-"
    start = time.process_time()
    try:
        with cpu_limit(limit):
            ignored = [m for m in (getattr(model, "get_classifier", lambda: None)(),) if isinstance(m, torch.nn.Module)]
            pruner = tp.pruner.BNScalePruner(
                model, batch, tp.importance.BNScaleImportance(), pruning_ratio=RATIO, round_to=None,
                ignored_layers=ignored, global_pruning=everywhere,
            )  # fmt: skip
            pruner.step()
        seconds = time.process_time() - start
        with torch.no_grad():
            model(batch)
        return f"{seconds:.2f}"
    except OutOfTime:
        return f"not finished after {time.process_time() - start:.0f} CPU s"
    except Exception as error:
        return type(error).__name__


def one(name: str) -> dict[str, Any]:
    """Measures one model in this process."""
    import timm

    from lightning_prune.channels import prune_channels

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    batch = torch.randn(2, 3, 96, 96)
    prune_channels(warm := timm.create_model("test_resnet").eval(), batch, keep={"layer1.0.bn1": [0, 1]})
    del warm
    torch.manual_seed(0)
    model = timm.create_model(name)
    if model.pretrained_cfg.get("fixed_input_size"):
        batch = torch.randn(2, *model.pretrained_cfg["input_size"])
    randomise(model, batch)
    with torch.no_grad():
        model(batch)
    other = copy.deepcopy(model)
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]) / (1 << 20)
    scores = {n: torch.rand(m.num_features) for n, m in model.named_modules() if is_norm(m)}
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), time.process_time()
    done = prune_channels(model, batch, scores=scores, ratio=RATIO)
    seconds, peak = time.process_time() - start, memory("VmHWM")
    found = peer(other, batch)
    return {
        "name": name, "mib": round(size), "seconds": round(seconds, 2), "extra": peak - before, "peer": found,
        "form": done.plan.form,
    }  # fmt: skip


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help="measure one model in this process and print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.models[0])))
        return
    lines = [
        "# What channel surgery costs",
        "",
        f"{datetime.date.today()}, torch {torch.__version__}, CPU, one thread, 96 px (or the model's fixed size), "
        "batch of 2. Seconds are CPU seconds from trace to verified compact model. `extra` is the peak of resident "
        "memory above what it was before. Regenerate with `python -m tests.sweep.channels_cost`.",
        "",
        "| model | form | model MiB | s | extra MiB | Torch-Pruning s |",
        "|---|---|---|---|---|---|",
    ]
    for name in args.models:
        command = [sys.executable, "-m", "tests.sweep.channels_cost", "--one", name]
        out = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if out.returncode:
            lines.append(f"| {name} | failed: {out.stderr.strip().splitlines()[-1][:120]} | | | | |")
        else:
            r = json.loads(out.stdout.strip().splitlines()[-1])
            lines.append(f"| {name} | {r['form']} | {r['mib']} | {r['seconds']} | {r['extra']} | {r['peer']} |")
        print(lines[-1], flush=True)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
