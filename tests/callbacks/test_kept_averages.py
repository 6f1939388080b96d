"""Averaged copies that the user keeps: cut and masked with the model, wherever they are; a teacher is left alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune import ScorePruningCallback
from lightning_prune.support.averages import lookalikes
from lightning_prune.support.network import reachable
from tests.callbacks.methods import equal, fit, keep_all, macs, removes_channels, run
from tests.toy import Toy, network, zeros

N = 8 * 9 + 16 * 8 * 9 + 16 * 4


class Ema(Toy):
    """Keeps `ModelEmaV3` of its network, registered or hidden in a list, and a teacher that never moves."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        ema = ModelEmaV3(self.net, decay=0.8)
        if registered:
            self.ema = ema
        self.hidden = [] if registered else [ema]
        self.teacher = network(1).requires_grad_(False)

    @property
    def average(self) -> Any:
        return self.ema if hasattr(self, "ema") else self.hidden[0]

    def on_train_batch_end(self, *args: Any) -> None:
        self.average.update(self.net)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("name", ["ltp", "mrts"])
def test_a_copy_that_follows_is_pruned_and_a_teacher_is_not(name: str, registered: bool, tmp_path: Path) -> None:
    module, _, _ = run(tmp_path, name, Ema(registered))
    assert equal(module.teacher, network(1))
    average = module.average.module
    assert [p.shape for p in average.parameters()] == [p.shape for p in module.net.parameters()]
    assert average(torch.randn(2, 1, 8, 8)).isfinite().all()
    if removes_channels(name):
        assert macs(average) == macs(module.net) <= 0.5 * macs(network())
    else:
        assert zeros(average) == zeros(module.net)
        assert abs(zeros(module.net) - 0.8 * N) <= 1
        for a, p in zip(average.parameters(), module.net.parameters(), strict=True):
            assert a.ndim == 1 or torch.equal(a == 0, p == 0)


class AtStart(Ema):
    """Updates it before each batch, so that a checkpoint of the batch before holds all updates."""

    def on_train_batch_start(self, *args: Any) -> None:
        self.average.update(self.net)

    on_train_batch_end = Toy.on_train_batch_end


@pytest.mark.parametrize("name", ["ltp", "mrts"])
def test_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    """Also where the copy has no time to move: from the last batch before the removal."""
    module, _, _ = run(tmp_path / "whole", name, AtStart(True), callbacks=[keep_all(tmp_path, every=8)])
    for step in (32, 40):
        again, _, _ = run(tmp_path / "again", name, AtStart(True), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert equal(module, again), step


def test_resumed_between_removals_with_a_copy_that_follows_and_a_teacher_that_is_still_whole(tmp_path: Path) -> None:
    common: dict[str, Any] = {"options": {"steps": 2, "warmup": 1, "sparsify": 1, "target_macs": 0.5}, "max_epochs": 3}
    module, *_ = fit(tmp_path / "a", ScorePruningCallback, AtStart(True), [keep_all(tmp_path, every=6)], **common)
    again, *_ = fit(tmp_path / "b", ScorePruningCallback, AtStart(True), ckpt_path=tmp_path / "step=12.ckpt", **common)
    assert equal(module, again)
    assert equal(module.teacher, network(1))


def test_a_hidden_copy_has_the_shapes_of_the_checkpoint_when_a_run_resumes(tmp_path: Path) -> None:
    run(tmp_path / "whole", "mrts", Ema(registered=False), callbacks=[keep_all(tmp_path, every=8)])
    again, _, _ = run(tmp_path / "again", "mrts", Ema(registered=False), ckpt_path=tmp_path / "step=40.ckpt")
    assert [p.shape for p in again.average.module.parameters()] == [p.shape for p in again.net.parameters()]
    assert equal(again.teacher, network(1))


class Wrapper:
    """A plain object around a module."""

    def __init__(self, ema: nn.Module) -> None:
        self.ema = ema


def test_copies_are_found_in_lists_dicts_and_wrappers_and_nowhere_else() -> None:
    module = Toy()
    frozen = copy.deepcopy(module.net).requires_grad_(False)
    places: dict[str, Any] = {
        "registered": frozen, "listed": [None, AveragedModel(frozen)], "named": {"ema": copy.deepcopy(frozen)},
        "wrapped": Wrapper(copy.deepcopy(frozen)), "part": [copy.deepcopy(frozen[0])], "other": [network()[:3]],
        "alias": [module.net],
    }  # fmt: skip
    for name, value in places.items():
        setattr(module, name, value)
    trained = {id(p) for p in module.net.parameters()}
    found = lookalikes(module, lambda p: id(p) in trained)
    assert {(c.address, c.path) for c in found} == {
        ("registered", "net"), ("listed[1].module", "net"), ("named['ema']", "net"), ("wrapped.ema", "net"),
    }  # fmt: skip
    places = dict(reachable(module))
    assert all(places[c.address] is c.module for c in found)
    assert len({id(m) for m in places.values()}) == len(places)
