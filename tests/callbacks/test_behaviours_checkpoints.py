"""The promises × every method: resumed equals uninterrupted, and checkpoints of every phase are plain ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from lightning_prune import plan_of, take_shapes
from tests.callbacks.methods import METHODS, equal, keep_all, removes_channels, run, target
from tests.toy import Toy, loaders, ours_left_on, trainer


def check_resume(path: Path, method: str, optimizer: str, steps: Iterable[int]) -> None:
    """A run that goes on from its checkpoint of a step ends with the same bits; the phase is from step 8 to 32."""
    module, callback, _ = run(path / "whole", method, Toy(optimizer=optimizer), callbacks=[keep_all(path)])
    for step in steps:
        state = torch.load(path / f"step={step}.ckpt", weights_only=True)["callbacks"]
        stage = next(v["stage"] for v in state.values() if isinstance(v, dict) and "stage" in v)
        assert stage == ("dense" if step <= 8 else "soft" if step <= 32 else "pruned")
        again, resumed, _ = run(path / "again", method, Toy(optimizer=optimizer), ckpt_path=path / f"step={step}.ckpt")
        assert equal(module, again), step
        if removes_channels(method):
            assert resumed.numbers == callback.numbers
            assert plan_of(again) == plan_of(module) is not None
        elif step < 32 and hasattr(callback, "final_thresholds"):
            assert torch.equal(callback.final_thresholds, resumed.final_thresholds)


def test_resumed_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    """From warm-up, the phase's start, mid-epoch, an epoch's end, before the removal, after it, and finetune."""
    check_resume(tmp_path, method, "adamw", (3, 9, 15, 24, 30, 33, 45))


@pytest.mark.parametrize("method", ["ltp", "mrts", "flop"])
def test_momentum_goes_on_too(method: str, tmp_path: Path) -> None:
    """One method of each family: what an optimizer keeps is the family's to follow, and AdamW has more of it."""
    check_resume(tmp_path, method, "sgd", (9, 30, 33))


def test_checkpoints_are_plain_in_every_phase(method: str, tmp_path: Path) -> None:
    run(tmp_path / "run", method, callbacks=[keep_all(tmp_path)])
    for path in tmp_path.glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        plain = Toy()
        take_shapes(plain, checkpoint)
        assert list(checkpoint["state_dict"]) == list(plain.state_dict())
        plain.load_state_dict(checkpoint["state_dict"], strict=True)
        assert path.stat().st_size < 60_000  # no data of the user's, no masks


def test_evaluation_of_a_soft_checkpoint_sees_what_training_saw(method: str, tmp_path: Path) -> None:
    data = loaders()["val_dataloaders"]
    x, inside = data.dataset.tensors[0], {}

    class Note(lightning.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.callbacks[0].seen == 24 and not inside:
                inside["loss"] = float(trainer.callback_metrics["val_loss"])
                inside["output"] = pl_module(x).detach()
                inside["masked"] = bool(ours_left_on(pl_module))
                trainer.save_checkpoint(tmp_path / "soft.ckpt")

    run(tmp_path, method, callbacks=[Note()])
    plain = Toy()
    plain.load_state_dict(torch.load(tmp_path / "soft.ckpt", weights_only=True)["state_dict"])
    same = torch.allclose(plain.eval()(x), inside["output"], atol=1e-4)
    makes_a_difference = inside["masked"] and method != "oneshot"  # whose masks keep everything up to the end
    assert same is not makes_a_difference
    for verb in ("validate", "test", "predict"):
        fresh, alone = Toy(), trainer(tmp_path, [METHODS[method](**target(method))])
        out = getattr(alone, verb)(fresh, data, ckpt_path=tmp_path / "soft.ckpt")
        if verb == "predict":
            torch.testing.assert_close(torch.cat(out), inside["output"])
        else:
            assert out[0]["val_loss"] == pytest.approx(inside["loss"], rel=1e-5)
        assert not ours_left_on(fresh)
        assert equal(fresh, plain)  # the checkpoint's own weights
