"""The promises × every method: budget, resume, checkpoints, what stays removed, averaged copies, a plain module."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.callbacks.checkpoint import take_shapes
from tests.callbacks.methods import METHODS, equal, fit, keep_all, removes_channels, size, target
from tests.toy import Toy, loaders, network, ours_left_on, samples, trainer, zeros

N = 8 * 9 + 16 * 8 * 9 + 16 * 4  # prunable weights of the toy network


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(path: Path, method: str, module: Any = None, **options: Any) -> tuple[Any, Any, lightning.Trainer]:
    given = options.pop("options", {})
    return fit(path, METHODS[method], module, options=target(method) | given, **options)


def macs(module: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 1, 8, 8))
    return counter.get_total_flops() / 2


def check_budget(method: str, module: Toy) -> None:
    """By PyTorch's own counter, or by counting zeros."""
    if removes_channels(method):
        dense = macs(network())
        assert 0.375 * dense <= macs(module.net) <= 0.5 * dense  # a channel of the first layer is an eighth
        assert zeros(module) == 0
    else:
        assert abs(zeros(module) - 0.8 * N) <= 1
        assert size(module) == size(Toy())


def test_the_budget_is_met_and_stays_met_through_finetune(method: str, tmp_path: Path) -> None:
    at_removal: list[Any] = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if callback and callback[0].stage == "pruned" and not at_removal:
                at_removal.append([tuple(p.shape) for p in pl_module.parameters()])
                at_removal.append([p.detach() == 0 for p in pl_module.parameters() if p.ndim > 1])

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            callback.append(trainer.callbacks[0])

    callback: list[Any] = []
    module, _, _ = run(tmp_path, method, Toy(optimizer="adamw"), callbacks=[Watch()])
    check_budget(method, module)
    shapes, gone = at_removal
    assert shapes == [tuple(p.shape) for p in module.parameters()]
    if not removes_channels(method):
        now = [p.detach() == 0 for p in module.parameters() if p.ndim > 1]
        assert all(torch.equal(a, b) for a, b in zip(gone, now, strict=True))
    images, labels = samples(8).tensors
    module.zero_grad()
    nn.functional.cross_entropy(module(images), labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())  # what is left trains


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_equals_uninterrupted(method: str, optimizer: str, tmp_path: Path) -> None:
    """From warm-up, the phase's start, mid-epoch, an epoch's end, before the removal, after it, and finetune."""
    module, callback, _ = run(tmp_path / "whole", method, Toy(optimizer=optimizer), callbacks=[keep_all(tmp_path)])
    for step in (3, 9, 15, 24, 30, 33, 45):
        state = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["callbacks"]
        stage = next(v["stage"] for v in state.values() if isinstance(v, dict) and "stage" in v)
        assert stage == ("dense" if step <= 8 else "soft" if step <= 32 else "pruned")
        again, resumed, _ = run(
            tmp_path / "again", method, Toy(optimizer=optimizer), ckpt_path=tmp_path / f"step={step}.ckpt"
        )
        assert equal(module, again), step
        if removes_channels(method):
            assert resumed.numbers == callback.numbers


def test_checkpoints_are_plain_in_every_phase(method: str, tmp_path: Path) -> None:
    run(tmp_path / "run", method, callbacks=[keep_all(tmp_path)])
    for path in tmp_path.glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        assert list(checkpoint["state_dict"]) == list(Toy().state_dict())
        plain = Toy()
        take_shapes(plain, checkpoint)
        plain.load_state_dict(checkpoint["state_dict"], strict=True)
        assert path.stat().st_size < 60_000  # no data of the user's, no masks


AVERAGING = {"ema": lambda: EMAWeightAveraging(decay=0.8), "swa": lambda: StochasticWeightAveraging(0.01, 2)}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("averaging", AVERAGING)
def test_averaged_copies_are_pruned_with_the_model(method: str, averaging: str, first: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback = METHODS[method](**target(method), warmup=1, sparsify=3, recalibrate_batches=2)
    callbacks = [callback, AVERAGING[averaging]()]
    module = Toy()
    trainer(tmp_path, callbacks if first else callbacks[::-1]).fit(module, **loaders())
    check_budget(method, module)
    assert not ours_left_on(module)
    assert module(torch.randn(2, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize("built", ["init", "setup", "configure_model"])
def test_nothing_is_left_on_the_module(method: str, built: str, tmp_path: Path) -> None:
    module, _, _ = run(tmp_path, method, Toy(built))
    assert not ours_left_on(module)
    assert {type(m) for m in module.net} == {type(m) for m in network()}
    assert list(module.state_dict()) == list(Toy().state_dict())
    assert not any(key.startswith("on_") for key in vars(module))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_copies_in_the_sparsify_phase_are_plain(method: str, tmp_path: Path) -> None:
    copies: list[Any] = []

    class Copy(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.callbacks[0].stage == "soft" and not copies:
                copies.append(copy.deepcopy(pl_module.net))
                copies.append(pickle.loads(pickle.dumps(pl_module.net)))
                copies.append({n: p.detach().clone() for n, p in pl_module.net.named_parameters()})

    run(tmp_path, method, callbacks=[Copy()])
    *nets, raw = copies
    for net in nets:
        assert not ours_left_on(net)
        assert {type(m) for m in net} == {type(m) for m in network()}
        assert all(torch.equal(p, raw[n]) for n, p in net.named_parameters())


def test_an_exception_leaves_a_plain_module_and_a_second_fit_works(method: str, tmp_path: Path) -> None:
    class Fails(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 20:
                raise ZeroDivisionError("on purpose")

    module = Toy()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        run(tmp_path, method, module, callbacks=[Fails()])
    assert not ours_left_on(module)
    assert not any(key.startswith("on_") for key in vars(module))
    module, callback, _ = run(tmp_path, method, module)
    assert callback.stage == "pruned"
    check_budget(method, module)


def test_evaluation_of_a_soft_checkpoint_sees_what_training_saw(method: str, tmp_path: Path) -> None:
    x, inside = loaders()["val_dataloaders"].dataset.tensors[0], {}

    class Note(lightning.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.callbacks[0].seen == 24 and not inside:
                inside["output"] = pl_module(x).detach()
                trainer.save_checkpoint(tmp_path / "soft.ckpt")

    run(tmp_path, method, callbacks=[Note()])
    fresh = Toy()
    out = trainer(tmp_path, [METHODS[method](**target(method))]).predict(
        fresh, loaders()["val_dataloaders"], ckpt_path=tmp_path / "soft.ckpt"
    )
    assert out is not None
    torch.testing.assert_close(torch.cat([o for o in out if isinstance(o, torch.Tensor)]), inside["output"])
    assert not ours_left_on(fresh)


TRAINERS = [{"fast_dev_run": 3}, {"max_epochs": -1, "max_steps": 40}, {"accumulate_grad_batches": 3}]


@pytest.mark.parametrize("options", TRAINERS, ids=str)
def test_trainers_of_all_kinds(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    module, callback, _ = run(tmp_path, method, **options)
    assert callback.stage == "pruned"
    check_budget(method, module)


def test_stopping_early_prunes_and_says_so(method: str, tmp_path: Path) -> None:
    class Stop(lightning.Callback):
        def __init__(self, epoch: int) -> None:
            self.epoch = epoch

        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.current_epoch == self.epoch

    with pytest.warns(UserWarning, match=r"ended in the sparsify phase, at .* Its checkpoints resume the phase"):
        module, callback, _ = run(tmp_path, method, callbacks=[Stop(2)])
    assert callback.stage == "pruned"
    assert zeros(module) > 0 or size(module) < size(Toy())
    with pytest.warns(UserWarning, match=r"ended in the warm-up, after 8 batches .* nothing was pruned"):
        module, _, _ = run(tmp_path, method, callbacks=[Stop(0)])
    assert zeros(module) == 0
    assert size(module) == size(Toy())
