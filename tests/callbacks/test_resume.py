"""Resumed == uninterrupted, bit for bit; checkpoints of every phase are ordinary dense ones."""

import copy

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import LTPCallback, MagnitudeCallback
from tests.toy import Toy, loaders, network, trainer, zeros

METHODS = {"ltp": LTPCallback, "magnitude": MagnitudeCallback}


def keep_all(path, every=3):
    """A checkpoint every few steps, mid-epoch ones included (an epoch has 8 steps)."""
    return ModelCheckpoint(dirpath=path, filename="{step}", every_n_train_steps=every, save_top_k=-1)


def fit(path, method, optimizer, ckpt_path=None, accumulate=1):
    torch.manual_seed(0)
    module = Toy(optimizer=optimizer)
    callback = METHODS[method](target_sparsity=0.8, warmup=1, sparsify=3)
    checkpoints = keep_all(path)
    run = trainer(path, [callback, checkpoints], enable_checkpointing=True, accumulate_grad_batches=accumulate)
    run.fit(module, **loaders(), ckpt_path=ckpt_path)
    return module, callback, run


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted_from_every_phase_and_mid_epoch(method, optimizer, tmp_path):
    module, callback, run = fit(tmp_path / "whole", method, optimizer)
    assert run.global_step == 48
    for step in (3, 9, 15, 24, 30, 33, 45):  # warm-up, its end +1, mid-epoch, an epoch end, sparsify, prune, finetune
        path = tmp_path / "whole" / f"step={step}.ckpt"
        stage = next(
            v for k, v in torch.load(path, weights_only=True)["callbacks"].items() if METHODS[method].__name__ in k
        )
        assert stage["stage"] == ("dense" if step <= 8 else "soft" if step < 32 else "pruned")
        again, resumed, _ = fit(tmp_path / f"from{step}", method, optimizer, ckpt_path=path)
        for (name, a), b in zip(module.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), f"{name} after resuming at step {step}"
        assert (
            torch.equal(callback.final_thresholds, resumed.final_thresholds)
            if step < 32
            else zeros(again) == zeros(module)
        )


def test_resumed_with_accumulation(tmp_path):
    module, _, _ = fit(tmp_path / "whole", "ltp", "sgd", accumulate=2)
    again, _, _ = fit(tmp_path / "again", "ltp", "sgd", ckpt_path=tmp_path / "whole" / "step=6.ckpt", accumulate=2)
    for a, b in zip(module.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_are_dense_and_load_anywhere(method, tmp_path):
    fit(tmp_path, method, "sgd")
    dense = Toy()
    for path in tmp_path.glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        assert list(checkpoint["state_dict"]) == list(dense.state_dict())
        dense.load_state_dict(checkpoint["state_dict"], strict=True)
        network().load_state_dict({k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items()})
    assert zeros(dense) >= 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluation_of_a_soft_checkpoint_sees_masked_weights(method, verb, tmp_path):
    """What fit measured at the end of an epoch is what a later evaluation of that checkpoint measures."""
    inside = {}

    class Note(lightning.Callback):
        def on_validation_end(self, trainer, pl_module):
            if callback.stage == "soft" and not inside and callback.seen == 24:
                inside["loss"] = trainer.callback_metrics["val_loss"].item()
                inside["output"] = pl_module(loaders()["val_dataloaders"].dataset.tensors[0]).detach()
                trainer.save_checkpoint(tmp_path / "soft.ckpt")

    callback = METHODS[method](target_sparsity=0.8, warmup=1, sparsify=3)
    trainer(tmp_path, [callback, Note()]).fit(Toy(), **loaders())
    fresh = Toy()
    plain = Toy()
    plain.load_state_dict(torch.load(tmp_path / "soft.ckpt", weights_only=True)["state_dict"])
    run = trainer(tmp_path, [METHODS[method](target_sparsity=0.8)])
    out = getattr(run, verb)(fresh, loaders()["val_dataloaders"], ckpt_path=tmp_path / "soft.ckpt")
    x = loaders()["val_dataloaders"].dataset.tensors[0]
    assert not torch.allclose(plain.eval()(x), inside["output"], atol=1e-4)  # the mask makes a difference
    if verb == "predict":
        torch.testing.assert_close(torch.cat(out), inside["output"])
    else:
        assert out[0]["val_loss"] == pytest.approx(inside["loss"], rel=1e-5)
    # afterwards the module is plain again, and holds the checkpoint's own weights
    for a, b in zip(fresh.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert type(fresh.net[0]) is torch.nn.Conv2d


def test_weights_only_checkpoint_of_finetune_keeps_its_zeros_when_trained_on(tmp_path):
    """save_weights_only drops callback state; zeros are in the weights all the same."""
    module, _, run = fit(tmp_path, "ltp", "sgd")
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    other = Toy()
    other.load_state_dict(torch.load(tmp_path / "weights.ckpt", weights_only=True)["state_dict"])
    assert zeros(other) == zeros(module)


def test_another_model_is_refused_by_name(tmp_path):
    fit(tmp_path, "ltp", "sgd")
    run = trainer(tmp_path, [LTPCallback(exclude=["net.8"])], enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"it also has \['net.8.weight'\]"):
        run.fit(Toy(), **loaders(), ckpt_path=tmp_path / "step=15.ckpt")


def test_callback_state_is_independent_of_the_live_run(tmp_path):
    """A state taken in mid-run does not change when the run goes on."""
    states = []

    class Take(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if callback.stage == "soft" and len(states) < 1:
                states.append((callback.state_dict(), copy.deepcopy(callback.state_dict())))

    callback = LTPCallback()
    trainer(tmp_path, [callback, Take()]).fit(Toy(), **loaders())
    live, copied = states[0]
    for key, tensor in copied["tensors"].items():
        assert torch.equal(live["tensors"][key], tensor), key
