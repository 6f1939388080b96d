"""Methods with training steps of their own: the core of the promises, and how the step is put on and taken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
from torch import Tensor

from lightning_prune import DistillationCallback
from tests.callbacks import test_behaviours as promises
from tests.callbacks import test_behaviours_checkpoints as checkpoints
from tests.callbacks import test_behaviours_left_behind as left_behind
from tests.callbacks.methods import STEPS, check_budget, equal, fit, keep_all, run
from tests.callbacks.test_gates import Still
from tests.callbacks.toys import ChannelScore
from tests.toy import Toy


@pytest.fixture(params=STEPS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_budget(method: str, tmp_path: Path) -> None:
    promises.test_the_budget_is_met_and_stays_met_through_finetune(method, tmp_path)


def test_resume(method: str, tmp_path: Path) -> None:
    checkpoints.check_resume(tmp_path, method, "adamw", (24, 33))


def test_evaluation_of_a_soft_checkpoint(method: str, tmp_path: Path) -> None:
    checkpoints.test_evaluation_of_a_soft_checkpoint_sees_what_training_saw(method, tmp_path)


def test_checkpoints_are_plain(method: str, tmp_path: Path) -> None:
    checkpoints.test_checkpoints_are_plain_in_every_phase(method, tmp_path)


def test_nothing_is_left(method: str, tmp_path: Path) -> None:
    left_behind.test_nothing_is_left_on_the_module(method, tmp_path)
    left_behind.test_an_exception_leaves_a_plain_module_and_a_second_fit_works(method, tmp_path)


def test_manual_optimization_is_refused_before_any_batch(method: str, tmp_path: Path) -> None:
    module = Still(manual=1)
    with pytest.raises(NotImplementedError, match=r"Still optimizes by hand .* nobody would read\."):
        run(tmp_path, method, module)
    assert module.global_step == 0


def test_accumulation_resumes_too(method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "max_epochs": 4, "limit_val_batches": 0}
    module, _, _ = run(tmp_path / "whole", method, callbacks=[keep_all(tmp_path, 5)], **options)
    again, _, _ = run(tmp_path / "again", method, ckpt_path=tmp_path / "step=5.ckpt", **options)
    assert equal(module, again)
    check_budget(method, again)


class Doubled(ChannelScore):
    """Trains on twice the loss, to the end if asked."""

    def train_on(self, pl_module: lightning.LightningModule, step: Any, batch: Any) -> Tensor:
        return 2 * step(batch)


class Losses(lightning.Callback):
    """What the step returned, and what the module's own gives: by stage."""

    def __init__(self) -> None:
        self.ratios: dict[str, set[float]] = {"dense": set(), "soft": set(), "pruned": set()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        stage = trainer.callbacks[0].stage
        self.ratios[stage].add(round(float(outputs["loss"] / pl_module.own), 4))


class Noting(Toy):
    """Remembers the loss of its own step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.own = float(loss)
        return {"loss": loss} if self.as_dict else loss

    as_dict = False


@pytest.mark.parametrize("to_the_end", [False, True])
def test_the_step_stands_in_its_phases_alone(to_the_end: bool, tmp_path: Path) -> None:
    made = type("Made", (Doubled,), {"trains_to_the_end": to_the_end})
    losses = Losses()
    module, _, _ = fit(tmp_path, made, Noting(), callbacks=[losses], options={"target_macs": 0.5})
    assert losses.ratios == {"dense": {1.0}, "soft": {2.0}, "pruned": {2.0 if to_the_end else 1.0}}
    assert type(module) is Noting
    assert "training_step" not in vars(module)


def test_a_teacher_beside_it_is_asked_too(tmp_path: Path) -> None:
    """Distillation wraps the same step: both are in force, and both are off in the end."""
    losses = Losses()
    teacher = DistillationCallback(alpha=0.5, teacher_dir=str(tmp_path))
    module, _, _ = fit(tmp_path, Doubled, Noting(), callbacks=[losses, teacher], options={"target_macs": 0.5})
    assert type(module) is Noting
    assert all(ratio != 2.0 for ratio in losses.ratios["soft"])
    assert losses.ratios["dense"] != {1.0}


def test_a_loss_in_a_dict_is_as_good(method: str, tmp_path: Path) -> None:
    short: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0, "options": {"warmup": 0, "sparsify": 1}}
    found = []
    for as_dict in (False, True):
        module = Noting()
        module.as_dict = as_dict
        found.append(run(tmp_path, method, module, **short)[0])
    assert equal(*found)
