"""Two gloo processes on the CPU: the same thresholds, masks and weights on both, and those of one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_prune import LTPCallback, MagnitudeCallback, sparsity_report
from tests.callbacks.processes import leave_group, run_in_two
from tests.callbacks.toys import WeightGates
from tests.toy import Toy, samples, trainer, zeros

MAKERS: dict[str, Any] = {"ltp": LTPCallback, "magnitude": MagnitudeCallback, "toy gates": WeightGates}
N = 8 * 9 + 16 * 8 * 9 + 16 * 4


def learned(callback: Any) -> list[float]:
    """Thresholds, or what gates have learned."""
    if isinstance(callback, WeightGates):
        return torch.cat([gate.logits.detach() for gate in callback.sigmoids.values()]).tolist()
    return callback.final_thresholds.tolist()


class Plain(Toy):
    """BatchNorm is off, so that two half batches equal a whole one."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1] = self.net[4] = torch.nn.Identity()


class Halves:
    """Each rank's half of every batch of one process."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        x, y = samples().tensors
        rank = torch.distributed.get_rank()
        return iter([(x[i + rank : i + 8 : 2], y[i + rank : i + 8 : 2]) for i in range(0, 64, 8)])


def fit(path: Path, method: str, module: Toy, strategy: str = "auto") -> dict[str, Any]:
    """What a fit on one or two processes ends with."""
    torch.manual_seed(0)
    callback = MAKERS[method](target_sparsity=0.8, sparsify=2)
    two = strategy != "auto"
    run = trainer(
        path, [callback], max_epochs=3, devices=2 if two else 1, strategy=strategy, limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    run.fit(module, Halves() if two else DataLoader(samples(), batch_size=8))
    numbers = {
        "weights": [p.double().sum().item() for p in module.parameters()],
        "zeros": zeros(module),
        "counted": sparsity_report(module).zeros,
    }
    return numbers if strategy == "ddp_spawn" else numbers | {"learned": learned(callback)}


def train(path: Path, method: str) -> None:
    """Run in each of two processes; writes what this rank ended with."""
    module = Plain()
    numbers = fit(path, method, module, "ddp")
    (path / f"{method} rank{module.global_rank}.json").write_text(json.dumps(numbers))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks wrote the results of all methods."""
    folder = tmp_path_factory.mktemp("ddp")
    run_in_two(__name__, folder)
    return folder


@pytest.mark.parametrize("method", MAKERS)
def test_two_processes_agree_with_each_other_and_with_one(method: str, results: Path, tmp_path: Path) -> None:
    one = fit(tmp_path, method, Plain())
    first, second = (json.loads((results / f"{method} rank{n}.json").read_text()) for n in (0, 1))
    assert first == second
    assert first["zeros"] == one["zeros"] == first["counted"]
    assert abs(first["zeros"] - 0.8 * N) <= 1
    assert first["learned"] == pytest.approx(one["learned"], rel=1e-3)
    assert first["weights"] == pytest.approx(one["weights"], rel=1e-3, abs=1e-3)


class Spawned(Plain):
    """Ends the process group of a child that ``ddp_spawn`` starts, in its last hook."""

    def teardown(self, stage: str) -> None:
        leave_group()


def test_pruned_weights_come_back_from_spawned_processes(results: Path, tmp_path: Path) -> None:
    spawned = fit(tmp_path, "ltp", Spawned(), "ddp_spawn")
    first = json.loads((results / "ltp rank0.json").read_text())
    assert spawned["zeros"] == first["zeros"]
    assert spawned["weights"] == pytest.approx(first["weights"], rel=1e-6)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in MAKERS:
        train(Path(sys.argv[1]), each)
    leave_group()
