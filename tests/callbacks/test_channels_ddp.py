"""Two gloo processes on the CPU: both remove the same channels, and go on with equal weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_prune import DistillationCallback, FLOPCallback
from tests.callbacks.methods import METHODS, STEPS
from tests.callbacks.processes import leave_group, run_in_two
from tests.toy import Toy, samples, trainer


class Shards:
    """Each rank's own half of the data."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        x, y = samples().tensors
        rank = torch.distributed.get_rank()
        return iter([(x[i : i + 4], y[i : i + 4]) for i in range(32 * rank, 32 * rank + 32, 4)])


TAUGHT, REFITTED = ", taught", ", refitted"
CASES = [("mrts", "labels"), ("slimming", ""), ("taylor", ""), ("toy channel gates", ""), ("flop", "")]
CASES += [("from scratch", ""), ("slimming" + TAUGHT, ""), ("taylor" + REFITTED, "")]
CASES += [(method, "") for method in STEPS]
CASES += [("mrts gates", "")]


def train(path: Path, method: str, information: str) -> None:
    """Run in each of two processes; writes what this rank ended with."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"information": information} if information else {}
    options |= {"reconstruct": "weights"} if method.endswith(REFITTED) else {}
    callback = METHODS[method.removesuffix(TAUGHT).removesuffix(REFITTED)](
        warmup=1, sparsify=2, recalibrate_batches=2, **options
    )
    teachers = [DistillationCallback(features=["2"])] if method.endswith(TAUGHT) else []
    run = trainer(
        path, [*teachers, callback], max_epochs=4, devices=2, strategy="ddp", limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    module = Toy()
    run.fit(module, Shards())
    numbers = {
        "weights": [p.double().sum().item() for p in module.parameters()],
        "shapes": [list(p.shape) for p in module.parameters()],
        "stage": callback.stage,
        "numbers": {k: v for k, v in callback.numbers.items() if k != "gap"},
    }
    if isinstance(callback, FLOPCallback):
        numbers["gates"] = [[g.log_alpha.tolist(), g.noise.tolist()] for g in callback._components.values()]
    (path / f"{method} rank{run.global_rank}.json").write_text(json.dumps(numbers))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks wrote the results of all cases."""
    folder = tmp_path_factory.mktemp("ddp")
    run_in_two(__name__, folder)
    return folder


@pytest.mark.parametrize("method", [method for method, _ in CASES])
def test_two_processes_remove_the_same_channels_and_stay_equal(method: str, results: Path) -> None:
    first, second = (json.loads((results / f"{method} rank{n}.json").read_text()) for n in (0, 1))
    assert first == second
    assert first["stage"] == "pruned"
    assert first["numbers"].get("macs", first["numbers"].get("params")) <= 0.5
    assert first["shapes"] != [list(p.shape) for p in Toy().parameters()]
    assert ("gates" in first) is (method == "flop")  # and they are equal on both


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        train(Path(sys.argv[1]), *case)
    leave_group()
