"""What we ask of Lightning's classes holds of their twins in ``pytorch_lightning`` too."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import pytorch_lightning
import torch
from pytorch_lightning.callbacks import BackboneFinetuning, EarlyStopping, ModelCheckpoint

from lightning_prune import MRTSCallback
from lightning_prune.callbacks.guard import check_launcher
from lightning_prune.callbacks.trainer import announce_removal, thaws_later
from lightning_prune.support.network import is_a
from tests.toy import trainer


def test_twins_are_known_and_nothing_else_is() -> None:
    assert is_a(ModelCheckpoint(), lightning.pytorch.callbacks.ModelCheckpoint)
    assert not is_a(ModelCheckpoint(), lightning.pytorch.callbacks.EarlyStopping)
    ours = type("ModelCheckpoint", (), {})()  # of the same name, and of a module of its own
    assert not is_a(ours, lightning.pytorch.callbacks.ModelCheckpoint)


def test_scores_of_the_dense_model_do_not_count_after_a_removal(tmp_path: Path) -> None:
    checkpoints, stopping = ModelCheckpoint(tmp_path, monitor="val_loss"), EarlyStopping("val_loss")
    checkpoints.best_model_score, checkpoints.best_k_models = torch.tensor(0.1), {"dense.ckpt": torch.tensor(0.1)}
    stopping.best_score, stopping.wait_count = torch.tensor(0.1), 2
    run = trainer(tmp_path, [checkpoints, stopping], pytorch_lightning.Trainer, enable_checkpointing=True)
    announce_removal(run, None, None)  # type: ignore[arg-type]
    assert checkpoints.best_model_score is None
    assert not checkpoints.best_k_models
    assert stopping.best_score.isinf()
    assert stopping.wait_count == 0


def test_layers_that_thaw_later(tmp_path: Path) -> None:
    assert thaws_later(trainer(tmp_path, [BackboneFinetuning()], pytorch_lightning.Trainer))
    assert not thaws_later(trainer(tmp_path, [], pytorch_lightning.Trainer))


def test_processes_from_which_no_smaller_model_comes_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, [], pytorch_lightning.Trainer, strategy="ddp_spawn", devices=2)
    with pytest.raises(NotImplementedError, match="MRTSCallback does not support a strategy that trains in processes"):
        check_launcher(run, MRTSCallback.__name__)
