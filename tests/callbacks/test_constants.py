"""Channels that the zeros have made constant: evaluation is what training was, and their scales stay zero."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from lightning_prune import KeepZeros, WeightPruning, WeightUnits
from lightning_prune.callbacks.families import weights
from lightning_prune.masks.shards import part
from lightning_prune.support.batchnorm import recalibrate
from tests.callbacks.methods import equal, fit, keep_all
from tests.callbacks.toys import WeightScore
from tests.toy import Toy, loaders, samples, trainer

EMPTY, FED = 3, 8  # channels of the first layer without a weight; of the second, those that read nothing else


class Empties(WeightPruning):
    """Takes all weights of some channels, and of some channels after them all weights that read others."""

    in_shards = True

    def score(self, units: WeightUnits) -> Tensor:
        return torch.ones(units.numel)

    def final_masks(self, score: Tensor, early: bool) -> list[Tensor]:
        masks = [torch.ones(t.param.shape, dtype=torch.bool) for t in self.units.targets]
        masks[0][:EMPTY] = False
        masks[1][:FED, EMPTY:] = False
        return [part(mask, t.param) for mask, t in zip(masks, self.units.targets, strict=True)]


class Shifted(Toy):
    """What is constant is not zero."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        nn.init.constant_(self.net[1].bias, 0.5)


def trained(path: Path, module: Toy, callbacks: Iterable[Any] = (), ckpt_path: Any = None) -> Any:
    return fit(path, Empties, module, callbacks, ckpt_path=ckpt_path, options={"target_sparsity": 0.5})[0]


def distance(module: Toy) -> float:
    """How far evaluation is from evaluation with fresh statistics, in units of the latter."""
    images = samples()[:][0]
    fresh = copy.deepcopy(module).eval()
    recalibrate(fresh.net, [images])
    with torch.no_grad():
        a, b = module.eval().net(images), fresh.net(images)
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_evaluation_is_what_training_was(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = trained(tmp_path, Shifted(optimizer=optimizer))
    assert distance(module) < 0.5  # running averages over few batches
    for norm, constant in ((module.net[1], EMPTY), (module.net[4], FED)):
        assert not norm.weight[:constant].any(), "held through the finetune"
        assert norm.weight[constant:].all()
        assert norm.bias[:constant].all(), "the shift is what is left"
    monkeypatch.setattr(weights, "silence_constants", lambda *args: None)
    assert distance(trained(tmp_path, Shifted(optimizer=optimizer))) > 50


def test_the_average_that_a_fit_ends_with_is_silenced_too(tmp_path: Path) -> None:
    module = trained(tmp_path, Shifted(), [EMAWeightAveraging(decay=0.9)])
    assert not module.net[1].weight[:EMPTY].any()
    assert not module.net[4].weight[:FED].any()


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", Shifted(), [keep_all(tmp_path / "steps", 5)])
    for step in (25, 40):  # in the sparsify phase, and after the prune
        resumed = trained(tmp_path / "resumed", Shifted(), ckpt_path=tmp_path / "steps" / f"step={step}.ckpt")
        assert equal(whole, resumed)


def test_they_stay_silent_in_a_fit_that_holds_zeros(tmp_path: Path) -> None:
    module = trained(tmp_path, Shifted())
    trainer(tmp_path, [KeepZeros()], max_epochs=2).fit(module, **loaders())
    assert not module.net[1].weight[:EMPTY].any()
    assert not module.net[4].weight[:FED].any()
    assert distance(module) < 0.5


def test_without_constants_nothing_is_touched(tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path, WeightScore, Shifted(), options={"target_sparsity": 0.5})
    assert all(norm.weight.all() for norm in module.net if isinstance(norm, nn.BatchNorm2d))
