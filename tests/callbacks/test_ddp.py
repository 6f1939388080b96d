"""Three gloo processes on the CPU: the same thresholds, masks and weights on all, and those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_prune import sparsity_report
from tests.callbacks.methods import METHODS, RIVALS, SPARSE, TOY_WEIGHTS, N, macs, sparse_macs
from tests.callbacks.processes import leave_group, run_ranks, this_rank
from tests.callbacks.toys import WeightGates
from tests.toy import Toy, network, samples, trainer, zeros

MACS, UNLIKE = " macs", "unlike sizes"  # a target of sparse MACs; images of another size on each rank
NAMES = ["ltp", "magnitude", *RIVALS, *TOY_WEIGHTS, "ltp" + MACS, "magnitude" + MACS]
RANKS, BATCH = 3, 6
SEED = 8
"""Of the weights. A gate near its threshold multiplies what a weight differs by with w²/2T, late in the phase by 150 to
600. LTP trained from weights 1e-7 apart so ends up to 1e-3 apart, or with another mask, in five trainings of twelve;
from these weights it ends 7e-7 apart."""


def learned(callback: Any) -> list[float]:
    """Thresholds, or what gates have learned, if anything."""
    if isinstance(callback, WeightGates):
        return torch.cat([gate.logits.detach() for gate in callback.sigmoids.values()]).tolist()
    return callback.final_thresholds.tolist() if hasattr(callback, "final_thresholds") else []


class Plain(Toy):
    """BatchNorm is off, so that parts of a batch equal a whole one. Only the first rank's weights are the seed's."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = network(seed + SEED)
        self.net[1] = self.net[4] = torch.nn.Identity()


class Shares:
    """Each rank's share of every batch of one process; ``unlike``: its images are smaller than the rank before's."""

    def __init__(self, unlike: bool = False) -> None:
        self.unlike = unlike

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Any:
        x, y = samples(60).tensors
        rank, n = torch.distributed.get_rank(), torch.distributed.get_world_size()
        x = x[..., : 8 - self.unlike * rank]
        return iter([(x[i + rank : i + BATCH : n], y[i + rank : i + BATCH : n]) for i in range(0, 60, BATCH)])


def fit(path: Path, method: str, module: Toy, ranks: int = 1, strategy: str = "auto") -> dict[str, Any]:
    """What a fit on one or several processes, each with a seed of its own, ends with."""
    torch.manual_seed(this_rank())
    unlike, name = method.endswith(UNLIKE), method.removesuffix(UNLIKE)
    target = {"target_macs": SPARSE} if name.endswith(MACS) else {"target_sparsity": 0.8}
    callback = METHODS[name.removesuffix(MACS)](sparsify=2, **target)
    run = trainer(
        path, [callback], max_epochs=3, devices=ranks, strategy=strategy, limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    run.fit(module, Shares(unlike) if ranks > 1 else DataLoader(samples(60), batch_size=BATCH))
    numbers = {
        "weights": [p.double().sum().item() for p in module.parameters()],
        "zeros": zeros(module),
        "counted": sparsity_report(module).zeros,
        "macs": sparse_macs(module.net),
    }
    return numbers if strategy == "ddp_spawn" else numbers | {"learned": learned(callback)}


def train(path: Path) -> None:
    """Run on each rank; writes what it ended with."""
    for method in [*NAMES, "ltp" + MACS + UNLIKE]:
        numbers = fit(path, method, Plain(this_rank()), RANKS, "ddp")
        (path / f"{method} rank{this_rank()}.json").write_text(json.dumps(numbers))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all ranks wrote the results of all methods."""
    folder = tmp_path_factory.mktemp("ddp")
    assert run_ranks(RANKS, train, folder) == [0] * RANKS
    return folder


def of_all(results: Path, method: str) -> dict[str, Any]:
    """What every rank ended with, the same."""
    first, *others = (json.loads((results / f"{method} rank{n}.json").read_text()) for n in range(RANKS))
    assert others == [first] * (RANKS - 1)
    return dict(first)


def check_equals_one(several: dict[str, Any], one: dict[str, Any]) -> None:
    """What several processes end with is what one ends with."""
    assert several["zeros"] == one["zeros"] == several["counted"]
    assert several["weights"] == pytest.approx(one["weights"], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("method", NAMES)
def test_processes_agree_with_each_other_and_with_one(method: str, results: Path, tmp_path: Path) -> None:
    one = fit(tmp_path, method, Plain())
    first = of_all(results, method)
    check_equals_one(first, one)
    assert first["learned"] == pytest.approx(one["learned"], rel=1e-3)
    if method.endswith(MACS):
        left, step = first["macs"]
        assert SPARSE * macs(network()) - step < left <= SPARSE * macs(network())
    else:
        assert abs(first["zeros"] - 0.8 * N) <= 1


def test_processes_agree_on_what_a_weight_costs_where_their_images_do_not(results: Path) -> None:
    """A layer behind a map costs less next to the head on a smaller image; one rank's count is that of all."""
    left, step = of_all(results, "ltp" + MACS + UNLIKE)["macs"]
    assert SPARSE * macs(network()) - step < left <= SPARSE * macs(network())  # the first rank's, of whole images


class Spawned(Plain):
    """Ends the process group of a child that ``ddp_spawn`` starts, in its last hook."""

    def teardown(self, stage: str) -> None:
        leave_group()


def test_pruned_weights_come_back_from_spawned_processes(tmp_path: Path) -> None:
    check_equals_one(fit(tmp_path, "ltp", Spawned(), 2, "ddp_spawn"), fit(tmp_path, "ltp", Plain()))
