"""Rethinking's protocol: budgets of epochs, what each arm starts from, and the comparison."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from lightning_prune import TimmClassifier, plan_of, prune_channels, rethink, save_pruned, scratch_budget
from lightning_prune.rethinking import Training
from lightning_prune.support.macs import count_macs
from tests.callbacks.methods import macs
from tests.toy import Toy, loaders, trainer

X = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("base", "pruned", "epochs", "cap", "expected"),
    [
        (100, 50, 160, None, 320),
        (100, 30, 10, None, 33),
        (1.0, 0.3, 30, None, 100),  # exactly, in spite of floating point
        (100, 75, 90, 2, 120),
        (100, 25, 90, 2, 180),
        (7, 7, 10, None, 10),
    ],
)
def test_scratch_b_costs_what_the_dense_training_did(
    base: float, pruned: float, epochs: int, cap: float | None, expected: int
) -> None:
    assert scratch_budget(base, pruned, epochs, cap) == expected


def test_wrong_budgets_are_named() -> None:
    for arguments, match in (
        ((1, 2, 10), "pruned_macs=2 must be positive and at most base_macs=1"),
        ((1, 0, 10), "pruned_macs=0"),
        ((2, 1, 0), "epochs=0 must be 1 or more"),
        ((2, 1, 10, 0.5), "cap=0.5 must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=match):
            scratch_budget(*arguments)  # type: ignore[arg-type]


def test_macs_are_those_of_a_convolution_and_a_matrix() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 6 * 6, 5)).train()
    before = copy.deepcopy(network.state_dict())
    assert count_macs(network, torch.zeros(1, 2, 8, 8)) == 3 * 2 * 9 * 36 + 108 * 5
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


class Data(lightning.LightningDataModule):
    """The toy's data."""

    def train_dataloader(self) -> Any:
        return loaders()["train_dataloaders"]

    def val_dataloader(self) -> Any:
        return loaders()["val_dataloaders"]

    test_dataloader = val_dataloader


class Start(lightning.Callback):
    """What a training starts from."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.epochs = trainer.max_epochs
        self.state = copy.deepcopy(pl_module.net.state_dict())


def compact() -> tuple[Toy, dict[str, Tensor]]:
    """A compact module, and the dense weights that it was cut from."""
    torch.manual_seed(3)
    module = Toy()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    dense = copy.deepcopy(module.net.state_dict())
    prune_channels(module.net, X, score="l1", scope="layer", macs=0.5)
    return module, dense


def run(tmp_path: Path, result: Any, **options: Any) -> tuple[list[Training], list[Start], Any]:
    starts: list[Start] = []

    def make_trainer(epochs: int) -> lightning.Trainer:
        starts.append(Start())
        return trainer(tmp_path, [starts[-1]], max_epochs=epochs, limit_train_batches=2)

    def make(arm: str) -> Toy:
        module = Toy(lr=0.01 if arm == "finetuned" else 0.05)
        for layer in module.net:
            if hasattr(layer, "reset_parameters"):  # `network` draws by a seed of its own
                layer.reset_parameters()
        return module

    arguments = {"epochs": 3, "finetune": 1, "metric": "val_acc"} | options
    found = rethink(result, make, make_trainer, lambda seed: Data(), X, **arguments)
    return list(found.trainings), starts, found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in b)


def test_arms_start_from_what_they_say_and_train_as_long(tmp_path: Path) -> None:
    module, _ = compact()
    share = macs(module.net) / macs(Toy().net)
    inherited = copy.deepcopy(module.net.state_dict())
    trainings, starts, found = run(tmp_path, module, seeds=(0, 1))
    assert [t.arm for t in trainings] == ["finetuned", "Scratch-E", "Scratch-B"] * 2
    assert [t.seed for t in trainings] == [0] * 3 + [1] * 3
    longer = int(3 / share)
    assert [s.epochs for s in starts] == [t.epochs for t in trainings] == [1, 3, longer] * 2
    assert [t.cost for t in trainings[:3]] == pytest.approx([share / 3, share, longer * share / 3])
    assert 2 / 3 < trainings[2].cost <= 1
    for first in (0, 3):
        assert same(starts[first].state, inherited)
        assert {k: v.shape for k, v in starts[first + 1].state.items()} == {k: v.shape for k, v in inherited.items()}
        assert not same(starts[first + 1].state, inherited)
        assert same(starts[first + 1].state, starts[first + 2].state)  # one draw a seed
    assert not same(starts[1].state, starts[4].state)
    assert same(module.net.state_dict(), inherited)  # the result is left alone
    assert str(found).splitlines()[2].startswith("| finetuned | 1 | ")
    assert found.values("Scratch-E") == {0: trainings[1].value, 1: trainings[4].value}
    assert len((found + found).trainings) == 12


def test_a_file_and_a_plan_give_the_same(tmp_path: Path) -> None:
    module, dense = compact()
    plan = plan_of(module)
    assert plan is not None
    plan.to_json(tmp_path / "plan.json")
    save_pruned(module.net, tmp_path / "compact.safetensors")
    options: dict[str, Any] = {"arms": ("finetuned", "Scratch-E")}
    first, starts, _ = run(tmp_path, tmp_path / "compact.safetensors", **options)
    assert same(starts[0].state, module.net.state_dict())
    for result in (plan, tmp_path / "plan.json", str(tmp_path / "plan.json")):
        trainings, starts, _ = run(tmp_path, result, weights=dense, **options)
        assert same(starts[0].state, module.net.state_dict())
        assert [t.value for t in trainings] == [t.value for t in first]


def test_the_cap_and_a_metric_of_the_test(tmp_path: Path) -> None:
    module = TimmClassifier("resnet20_cifar", num_classes=4, model_kwargs={"width": 4})
    prune_channels(module.model, X, score="l1", macs=0.4)

    def make(arm: str) -> TimmClassifier:
        return TimmClassifier("resnet20_cifar", num_classes=4, model_kwargs={"width": 4}, optimizer="sgd")

    def short(epochs: int) -> lightning.Trainer:
        return trainer(tmp_path, [], max_epochs=epochs, limit_train_batches=1)

    arms: Any = ("Scratch-B",)
    found = rethink(module, make, short, lambda seed: Data(), X, epochs=2, finetune=1, cap=1.5, arms=arms)
    assert [t.epochs for t in found.trainings] == [3]
    assert found.metric == "test/acc"


def test_wrong_results_are_named(tmp_path: Path) -> None:
    module, _ = compact()
    with pytest.raises(ValueError, match="Toy is not compact: expected a network whose channels were removed"):
        run(tmp_path, Toy())
    with pytest.raises(ValueError, match="a plan has no weights to inherit: give weights="):
        run(tmp_path, plan_of(module))
    with pytest.raises(ValueError, match="metric='acc' is not logged; there are val_loss, val_acc"):
        run(tmp_path, module, metric="acc", arms=("finetuned",))
