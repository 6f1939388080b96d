"""Two gloo processes on the CPU: the same thresholds, masks and weights on both, and those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_prune import LTPCallback, MagnitudeCallback, sparsity_report
from tests.callbacks.toys import WeightGates
from tests.toy import Toy, samples, trainer, zeros

MAKERS: dict[str, Any] = {"ltp": LTPCallback, "magnitude": MagnitudeCallback, "toy gates": WeightGates}
N = 8 * 9 + 16 * 8 * 9 + 16 * 4


def learned(callback: Any) -> list[float]:
    """Thresholds, or what gates have learned."""
    if isinstance(callback, WeightGates):
        return torch.cat([gate.logits.detach() for gate in callback.sigmoids.values()]).tolist()
    return callback.final_thresholds.tolist()


class Report(Toy):
    """Writes what each rank ended with; BatchNorm is off, so that two half batches equal a whole one."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.net[1] = self.net[4] = torch.nn.Identity()

    def on_fit_end(self) -> None:
        callback = next(c for c in self.trainer.callbacks if type(c) in MAKERS.values())
        numbers = {
            "weights": [p.double().sum().item() for p in self.parameters()],
            "learned": learned(callback),
            "zeros": zeros(self),
        }
        with open(f"{self.path}/rank{self.global_rank}of{self.trainer.world_size}.json", "w") as f:
            json.dump(numbers, f)


def fit(path: Path, method: Any, devices: int) -> Any:
    torch.manual_seed(0)
    module = Report(str(path))
    data = DataLoader(samples(), batch_size=8 // devices)
    strategy = "ddp_spawn" if devices > 1 else "auto"
    run = trainer(
        path, [MAKERS[method](target_sparsity=0.8, sparsify=2)], max_epochs=3, devices=devices, strategy=strategy,
        limit_val_batches=0, use_distributed_sampler=False,
    )  # fmt: skip
    if devices > 1:
        sampler = torch.utils.data.BatchSampler(range(64), 8, False)
        halves = [[b[rank::2] for b in sampler] for rank in range(2)]
        data = Halves(halves)
    run.fit(module, data)
    return module


class Halves:
    """Each rank's half of every batch of one process."""

    def __init__(self, halves: Any) -> None:
        self.halves = halves

    def __len__(self) -> int:
        return len(self.halves[0])

    def __iter__(self) -> Any:
        x, y = samples().tensors
        rank = torch.distributed.get_rank()
        return iter([(x[i], y[i]) for i in self.halves[rank]])


@pytest.mark.parametrize("method", MAKERS)
def test_two_processes_agree_with_each_other_and_with_one(method: Any, tmp_path: Path) -> None:
    fit(tmp_path, method, 1)
    module = fit(tmp_path, method, 2)
    one, first, second = (json.loads((tmp_path / f"rank{n}.json").read_text()) for n in ("0of1", "0of2", "1of2"))
    assert first == second
    assert first["zeros"] == one["zeros"] == sparsity_report(module).zeros
    assert abs(first["zeros"] - 0.8 * N) <= 1
    assert first["learned"] == pytest.approx(one["learned"], rel=1e-3)
    assert first["weights"] == pytest.approx(one["weights"], rel=1e-3, abs=1e-3)
