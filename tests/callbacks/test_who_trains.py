"""Weights that nothing trains are no targets; what trains is decided when the sparsify phase begins."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from lightning_prune import KeepZeros, LTPCallback
from tests.callbacks.methods import WEIGHTS, equal, fit, keep_all, run
from tests.toy import Toy, loaders, network, trainer, zeros

N = 8 * 9 + 16 * 8 * 9 + 16 * 4


def warned(path: Path, method: str, module: Any, **options: Any) -> tuple[Any, Any, list[str]]:
    """A fit, and what it warned of."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        module, callback, _ = run(path, method, module, **options)
    return module, callback, [str(w.message) for w in record]


class WithTeacher(Toy):
    """An unfrozen network beside the trained one, which no optimizer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = network(1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.05)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_no_optimizer_holds_are_no_targets_and_are_named_once(name: str, tmp_path: Path) -> None:
    module, _, said = warned(tmp_path, name, WithTeacher())
    assert equal(module.teacher, network(1))
    assert abs(zeros(module.net) - 0.8 * N) <= 1
    (line,) = [line for line in said if "held by no optimizer" in line]
    assert all(f"teacher.{i}.weight" in line for i in (0, 3, 8))


class Transfer(Toy):
    """What `BackboneFinetuning` wants: a backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head, self.net = self.net[:8], self.net[8], nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)


def unfreezing(epoch: int) -> BackboneFinetuning:
    return BackboneFinetuning(unfreeze_backbone_at_epoch=epoch, backbone_initial_lr=0.05)


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_trains_when_the_phase_begins_is_pruned(name: str, tmp_path: Path) -> None:
    module, _, said = warned(tmp_path, name, Transfer(), callbacks=[unfreezing(1)])
    assert abs(zeros(module) - 0.8 * N) <= 1
    assert not [line for line in said if "leaves dense" in line or "began to train" in line]


@pytest.mark.parametrize("name", ["ltp", "fpgm"])
def test_what_trains_later_is_named(name: str, tmp_path: Path) -> None:
    module = Transfer()
    if name == "fpgm":  # whose head alone has no channel that could go
        module.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    options = {"target_macs": 0.99} if name == "fpgm" else {}
    module, _, said = warned(tmp_path, name, module, callbacks=[unfreezing(2)], options=options)
    (line,) = [line for line in said if "began to train after the sparsify phase had begun" in line]
    assert "0.weight" in line
    assert "longer warmup" in line
    (line,) = [line for line in said if "frozen (requires_grad=False" in line]
    assert "head" not in line
    assert zeros(module) == (51 if name == "ltp" else 0)  # four fifths of the head's 64 weights


def test_targets_are_those_of_the_checkpoint_whatever_trains_now(tmp_path: Path) -> None:
    _, callback, _ = run(tmp_path / "whole", "ltp", WithTeacher(), callbacks=[keep_all(tmp_path)])

    class AllHeld(WithTeacher):
        configure_optimizers = Toy.configure_optimizers

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["optimizer_states"] = []

    for step in (15, 45):
        _, resumed, _ = run(tmp_path / "again", "ltp", AllHeld(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert resumed.units.names == callback.units.names == [f"net.{i}.weight" for i in (0, 3, 8)]


def test_zeros_of_a_frozen_layer_are_held_when_it_is_unfrozen(tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path, LTPCallback, Transfer(), options={"target_sparsity": 0.8})
    before = copy.deepcopy(module)
    trainer(tmp_path, [KeepZeros(), unfreezing(1)], max_epochs=3).fit(module, **loaders())
    for now, then in zip(module.parameters(), before.parameters(), strict=True):
        if now.ndim > 1:
            assert not torch.equal(now, then)
            assert torch.equal(now == 0, then == 0)
