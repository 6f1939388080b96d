"""Channel pruning and what looks across the removal: the best checkpoint, early stopping, evaluation of either side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_prune import plan_of
from tests.callbacks.methods import CHANNELS, fit
from tests.toy import Toy, loaders, trainer


class Falling(Toy):
    """A metric that favours the first epochs."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", 100.0 - self.trainer.global_step)

    test_step = validation_step


@pytest.mark.parametrize("name", CHANNELS)
def test_best_is_a_compact_model_and_evaluation_crosses_the_removal(name: str, tmp_path: Path) -> None:
    best = ModelCheckpoint(dirpath=tmp_path, filename="best-{epoch}", monitor="score", mode="max", save_top_k=1)
    every = ModelCheckpoint(dirpath=tmp_path, filename="all-{epoch}", save_top_k=-1)
    stop = EarlyStopping("score", mode="max", patience=4)
    module, _, run = fit(tmp_path, CHANNELS[name], Falling(), [best, every, stop])
    assert run.current_epoch == 6  # patience counts anew after the removal
    assert "epoch=4" in best.best_model_path
    small = {k: v.shape for k, v in module.state_dict().items()}
    data = loaders()["val_dataloaders"]
    run.test(module, data, ckpt_path="best", verbose=False)
    assert {k: v.shape for k, v in module.state_dict().items()} == small
    run.validate(module, data, ckpt_path=tmp_path / "all-epoch=1.ckpt", verbose=False)
    dense = torch.load(tmp_path / "all-epoch=1.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(module.state_dict()[k], v) for k, v in dense.items())
    assert plan_of(module) is None
    fresh = Falling()
    trainer(tmp_path, [CHANNELS[name]()]).validate(fresh, data, tmp_path / "all-epoch=5.ckpt", verbose=False)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == small
