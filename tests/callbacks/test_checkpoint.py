"""Checkpoints of compact modules, loaded without the callback that made them compact."""

import doctest
import logging
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import LightningModule

import lightning_prune.callbacks.checkpoint as checkpoint_module
from lightning_prune import CompactCheckpoint, MRTSCallback, take_shapes
from lightning_prune.plan.record import plan_of
from tests.callbacks.methods import equal, fit, size
from tests.toy import Toy, loaders, trainer

RANK_ZERO = "lightning.pytorch.utilities.rank_zero"


class Compact(CompactCheckpoint, Toy):
    """The one line."""


class Last(Toy, CompactCheckpoint):
    """The bases in the other order."""


class Noting(CompactCheckpoint, Toy):
    """Hooks of its own that call on."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["noted"] = 1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.noted = checkpoint["noted"]


class ByHand(Toy):
    """The function in place of the class."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        take_shapes(self, checkpoint)


def saved(path: Path, module: LightningModule) -> LightningModule:
    module, _, run = fit(path, MRTSCallback, module)
    assert size(module) < 0.8 * size(Toy())
    run.save_checkpoint(path / "compact.ckpt")
    return module


@pytest.mark.parametrize("kind", [Compact, Last, Noting, ByHand])
def test_it_loads_without_a_trainer_and_with_one_that_has_no_callback(kind: type[Toy], tmp_path: Path) -> None:
    module = saved(tmp_path, kind())
    again = kind.load_from_checkpoint(tmp_path / "compact.ckpt", map_location="cpu")
    assert equal(again, module)
    assert plan_of(again) == plan_of(module)
    other = kind()
    result = trainer(tmp_path, []).validate(other, loaders()["val_dataloaders"], tmp_path / "compact.ckpt", False)
    assert result == trainer(tmp_path, []).validate(module, loaders()["val_dataloaders"], verbose=False)
    assert equal(other, module)


def test_hooks_of_its_own_run_too(tmp_path: Path) -> None:
    saved(tmp_path, Noting())
    assert Noting.load_from_checkpoint(tmp_path / "compact.ckpt", map_location="cpu").noted == 1


def test_a_fit_without_the_callback_keeps_the_plan_in_its_checkpoints(tmp_path: Path) -> None:
    module = saved(tmp_path, Compact())
    run = trainer(tmp_path, [], max_epochs=1)
    run.fit(module, **loaders())
    run.save_checkpoint(tmp_path / "later.ckpt")
    assert equal(Compact.load_from_checkpoint(tmp_path / "later.ckpt", map_location="cpu"), module)


def test_a_dense_checkpoint_gives_a_compact_module_its_dense_shapes_back(tmp_path: Path) -> None:
    module, dense = saved(tmp_path, Compact()), Compact()
    run = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    run.strategy.connect(dense)
    run.save_checkpoint(tmp_path / "dense.ckpt")
    checkpoint = torch.load(tmp_path / "dense.ckpt", weights_only=True)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    assert equal(module, dense)


def test_who_saves_a_compact_checkpoint_that_would_not_load_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, RANK_ZERO)
    saved(tmp_path / "plain", Toy())
    told = [r.message for r in caplog.records if "CompactCheckpoint" in r.message]
    assert len(told) == 1
    assert "class Toy(lightning_prune.CompactCheckpoint, LightningModule)" in told[0]
    assert "take_shapes" in told[0]
    with pytest.raises(RuntimeError, match="size mismatch"):
        Toy.load_from_checkpoint(tmp_path / "plain" / "compact.ckpt", map_location="cpu")
    caplog.clear()
    saved(tmp_path / "compact", Compact())
    assert not [r for r in caplog.records if "CompactCheckpoint" in r.message]


def test_docstring_examples() -> None:
    assert doctest.testmod(checkpoint_module) == (0, 2)
