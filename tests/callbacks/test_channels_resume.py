"""Structured methods across checkpoints: resume, averaged copies, best, an early end."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging

from lightning_prune.plan.record import plan_of
from tests.callbacks.structured import METHODS, equal, fit, keep_all, size
from tests.toy import Toy, loaders, trainer


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_equals_uninterrupted_before_at_and_after_the_removal(method, optimizer, tmp_path):
    module, callback, _ = fit(tmp_path / "whole", method, Toy(optimizer=optimizer), [keep_all(tmp_path / "whole")])
    for step in (3, 9, 15, 30, 33, 45):  # warm-up, its end +1, mid-epoch, before the removal, after it, finetune
        path = tmp_path / "whole" / f"step={step}.ckpt"
        again, resumed, _ = fit(tmp_path / f"{step}", method, Toy(optimizer=optimizer), ckpt_path=path)
        assert equal(module, again), step
        assert resumed.numbers == callback.numbers
        if step < 32:
            assert resumed.pruned.plan == callback.pruned.plan
        assert plan_of(again) == plan_of(module)


def test_resumed_from_the_checkpoint_between_the_phases(method, tmp_path):
    """Saved at the end of the epoch after which the channels go: dense weights, full optimizer state."""
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "whole", filename="{epoch}", save_top_k=-1)
    module, _, _ = fit(tmp_path / "whole", method, callbacks=[checkpoints])
    path = tmp_path / "whole" / "epoch=3.ckpt"
    assert torch.load(path, weights_only=True)["state_dict"]["net.0.weight"].shape[0] == 8
    again, _, _ = fit(tmp_path / "again", method, ckpt_path=path)
    assert equal(module, again)


AVERAGING = {"ema": lambda: EMAWeightAveraging(decay=0.9), "swa": lambda: StochasticWeightAveraging(1e-2, 1)}


@pytest.mark.parametrize("averaging", AVERAGING)
def test_averaged_copies_shrink_with_the_model(averaging, method, tmp_path):
    module, callback, _ = fit(tmp_path, method, callbacks=[AVERAGING[averaging]()])
    assert callback.stage == "pruned"
    assert size(module) < 0.8 * size(Toy())
    assert module(torch.randn(2, 1, 8, 8)).isfinite().all()


def test_resume_with_averaging(method, tmp_path):
    parts = [EMAWeightAveraging(decay=0.9), keep_all(tmp_path / "whole")]
    module, _, _ = fit(tmp_path / "whole", method, callbacks=parts)
    for step in (15, 45):
        path = tmp_path / "whole" / f"step={step}.ckpt"
        again, _, _ = fit(tmp_path / f"{step}", method, callbacks=[EMAWeightAveraging(decay=0.9)], ckpt_path=path)
        assert equal(module, again), step


def test_best_is_a_compact_model_and_evaluation_crosses_the_boundary(method, tmp_path):
    class Falling(Toy):
        """A metric that favours the first epochs."""

        def validation_step(self, batch, batch_idx):
            self.log("score", 100.0 - self.trainer.global_step)

        test_step = validation_step

    best = ModelCheckpoint(dirpath=tmp_path, filename="best-{epoch}", monitor="score", mode="max", save_top_k=1)
    every = ModelCheckpoint(dirpath=tmp_path, filename="all-{epoch}", save_top_k=-1)
    stop = EarlyStopping("score", mode="max", patience=4)
    module, _callback, run = fit(tmp_path, method, Falling(), [best, every, stop])
    assert run.current_epoch == 6  # patience counts anew after the removal
    assert "epoch=4" in best.best_model_path
    small = {k: v.shape for k, v in module.state_dict().items()}
    run.test(module, loaders()["val_dataloaders"], ckpt_path="best", verbose=False)
    assert {k: v.shape for k, v in module.state_dict().items()} == small
    run.validate(module, loaders()["val_dataloaders"], ckpt_path=tmp_path / "all-epoch=1.ckpt", verbose=False)
    dense = torch.load(tmp_path / "all-epoch=1.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(module.state_dict()[k], v) for k, v in dense.items())
    assert plan_of(module) is None
    fresh = Falling()
    trainer(tmp_path, [method()]).validate(
        fresh, loaders()["val_dataloaders"], ckpt_path=tmp_path / "all-epoch=5.ckpt", verbose=False
    )
    assert {k: v.shape for k, v in fresh.state_dict().items()} == small


class StopAt(lightning.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step >= self.step


def test_early_end_of_training_still_prunes_and_says_so(method, tmp_path):
    with pytest.warns(UserWarning, match="ended in the sparsify phase, at"):
        module, callback, _ = fit(tmp_path, method, options={"warmup": 1, "sparsify": 1.0 - 1 / 6})
    assert callback.stage == "pruned"
    assert size(module) < size(Toy())
    with pytest.warns(UserWarning, match="nothing was pruned"):
        module, callback, _ = fit(tmp_path, method, options={"warmup": 5, "sparsify": 1}, max_epochs=6, max_steps=48,
                                  callbacks=[StopAt(16)])  # fmt: skip
    assert size(module) == size(Toy())
