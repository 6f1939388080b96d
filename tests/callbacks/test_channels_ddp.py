"""Three gloo processes on the CPU: all remove the same channels, and go on with equal weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils import _pytree as pytree

from lightning_prune import DistillationCallback, FLOPCallback, TASCallback
from tests.callbacks.methods import METHODS, STEPS, target
from tests.callbacks.processes import run_ranks, this_rank
from tests.callbacks.test_branches import Residual
from tests.toy import Toy, network, samples, trainer

RANKS, BATCHES = 3, 8


class Shards:
    """Each rank's own part of the data, in batches of 3, 4 and 5 samples."""

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Any:
        size = 3 + torch.distributed.get_rank()
        begin = BATCHES * sum(range(3, size))
        x, y = samples(BATCHES * 12).tensors
        return iter([(x[i : i + size], y[i : i + size]) for i in range(begin, begin + BATCHES * size, size)])


class Learned(lightning.Callback):
    """The method's tensors and what its gates have learned, after each batch of the sparsify phase."""

    def __init__(self) -> None:
        self.sums: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        state = next(c for c in trainer.callbacks if hasattr(c, "stage")).state_dict()
        found = pytree.tree_leaves([state.get("tensors"), state.get("gates")])
        self.sums += [float(t.double().nan_to_num(posinf=1e9).sum()) for t in found if torch.is_tensor(t)]


TAUGHT, REFITTED, DEPTHS = ", taught", ", refitted", ", depths"
CASES = [("mrts", "labels"), ("slimming", ""), ("taylor", ""), ("toy channel gates", ""), ("flop", "")]
CASES += [("from scratch", ""), ("slimming" + TAUGHT, ""), ("taylor" + REFITTED, "")]
CASES += [(method + DEPTHS * (method == "tas"), "") for method in STEPS]  # it has widths there too
CASES += [("mrts gates", "")]


def fit(path: Path, method: str, information: str) -> None:
    """Run on each rank, with a seed of its own; writes what it ended with."""
    torch.manual_seed(this_rank())
    options: dict[str, Any] = {"information": information} if information else {}
    options |= {"reconstruct": "weights"} if method.endswith(REFITTED) else {}
    options |= {"depths": (0.5, 1.0)} if method.endswith(DEPTHS) else {}
    name = method.removesuffix(TAUGHT).removesuffix(REFITTED).removesuffix(DEPTHS)
    callback = METHODS[name](warmup=1, sparsify=2, recalibrate_batches=2, **target(name), **options)
    teachers = [DistillationCallback(features=["2"])] if method.endswith(TAUGHT) else []
    learned = Learned()
    run = trainer(
        path, [*teachers, callback, learned], max_epochs=4, devices=RANKS, strategy="ddp", limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    module = Toy()
    module.net = Residual() if method.endswith(DEPTHS) else network(this_rank())
    run.fit(module, Shards())
    numbers = {
        "weights": [p.double().sum().item() for p in module.parameters()],
        "shapes": [list(p.shape) for p in module.parameters()],
        "stage": callback.stage,
        "learned": learned.sums,
        "numbers": {k: v for k, v in callback.numbers.items() if k != "gap"},
    }
    if isinstance(callback, FLOPCallback):
        numbers["gates"] = [[g.log_alpha.tolist(), g.noise.tolist()] for g in callback._components.values()]
    if isinstance(callback, TASCallback) and callback.depths is not None:
        numbers["depths"] = callback.depths.counts.logits.tolist()
    (path / f"{method} rank{this_rank()}.json").write_text(json.dumps(numbers))


def train(path: Path) -> None:
    """All cases, on each rank."""
    for case in CASES:
        fit(path, *case)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all ranks wrote the results of all cases."""
    folder = tmp_path_factory.mktemp("ddp")
    assert run_ranks(RANKS, train, folder) == [0] * RANKS
    return folder


@pytest.mark.parametrize("method", [method for method, _ in CASES])
def test_processes_remove_the_same_channels_and_stay_equal(method: str, results: Path) -> None:
    first, *others = (json.loads((results / f"{method} rank{n}.json").read_text()) for n in range(RANKS))
    assert others == [first] * (RANKS - 1)
    assert first["stage"] == "pruned"
    assert first["numbers"].get("macs", first["numbers"].get("params")) <= 0.5
    dense = Residual() if method.endswith(DEPTHS) else network()
    assert first["shapes"] != [list(p.shape) for p in dense.parameters()]
    assert ("gates" in first) is (method == "flop")  # and they are equal on all
    assert any(map(any, first.get("depths", ()))) is method.endswith(DEPTHS)
