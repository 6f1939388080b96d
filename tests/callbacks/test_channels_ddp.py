"""Two gloo processes on the CPU: both remove the same channels, and go on with equal weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.methods import METHODS
from tests.toy import Toy, samples, trainer


class Shards:
    """Each rank's own half of the data."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        x, y = samples().tensors
        rank = torch.distributed.get_rank()
        return iter([(x[i : i + 4], y[i : i + 4]) for i in range(32 * rank, 32 * rank + 32, 4)])


def train(path: Path, method: Any, information: str) -> None:
    """Run in each of two processes; writes what this rank ended with."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    options = {"information": information} if information else {}
    callback = METHODS[method](warmup=1, sparsify=2, recalibrate_batches=2, **options)
    run = trainer(
        path, [callback], max_epochs=4, devices=2, strategy="ddp", limit_val_batches=0, use_distributed_sampler=False
    )
    module = Toy()
    run.fit(module, Shards())
    numbers = {
        "weights": [p.double().sum().item() for p in module.parameters()],
        "shapes": [list(p.shape) for p in module.parameters()],
        "stage": callback.stage,
        "numbers": {k: v for k, v in callback.numbers.items() if k != "gap"},
    }
    with open(f"{path}/rank{run.global_rank}.json", "w") as f:
        json.dump(numbers, f)


@pytest.mark.parametrize(
    ("method", "information"),
    [("mrts", "labels"), ("slimming", ""), ("taylor", ""), ("toy channel gates", "")],
)
def test_two_processes_remove_the_same_channels_and_stay_equal(method: Any, information: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.callbacks.test_channels_ddp", str(tmp_path), method, information]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{n}.json").read_text()) for n in (0, 1))
    assert first == second
    assert first["stage"] == "pruned"
    assert first["numbers"]["macs"] <= 0.5
    assert first["shapes"][0][0] < 8


if __name__ == "__main__":
    train(*sys.argv[1:])
