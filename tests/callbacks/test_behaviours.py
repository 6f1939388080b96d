"""The promises × every method: budget, phases, what stays removed, averaged copies, trainers of all kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from tests.callbacks.methods import METHODS, check_budget, removes_channels, run, size, target
from tests.toy import Stream, Toy, loaders, ours_left_on, samples, trainer, zeros


class AtRemoval(lightning.Callback):
    """Parameters as they are at the end of the batch after which the units are gone."""

    def __init__(self) -> None:
        self.parameters: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.callbacks[0].stage == "pruned" and not self.parameters:
            self.parameters = [p.detach().clone() for p in pl_module.parameters()]


def test_the_budget_is_met_and_stays_met_through_finetune(method: str, tmp_path: Path) -> None:
    watch = AtRemoval()
    module, _, _ = run(tmp_path, method, Toy(optimizer="adamw"), callbacks=[watch])
    check_budget(method, module)
    for before, now in zip(watch.parameters, module.parameters(), strict=True):
        assert before.shape == now.shape
        if now.ndim > 1:
            assert torch.equal(before == 0, now == 0)
            assert (before != now)[before != 0].float().mean() > 0.9  # what is left was trained
    images, labels = samples(8).tensors
    module.zero_grad()
    nn.functional.cross_entropy(module(images), labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())  # and still trains


def test_warmup_is_dense_and_phases_follow(method: str, tmp_path: Path) -> None:
    stages: list[tuple[str, str]] = []

    class Watch(lightning.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            callback = trainer.callbacks[0]
            if not trainer.sanity_checking:
                stages.append((callback.stage, callback.phases.at(callback.seen)))

    run(tmp_path, method, callbacks=[Watch()], options={"warmup": 2, "sparsify": 2})
    # Weights are zeroed before the validation at the end of the phase, channels removed at the start of the next batch.
    fourth = "soft" if removes_channels(method) else "pruned"
    assert [s for s, _ in stages] == ["dense", "dense", "soft", fourth, "pruned", "pruned"]
    assert [p for _, p in stages] == ["warmup", "sparsify", "sparsify", "finetune", "finetune", "finetune"]


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


STREAM = {"train_dataloaders": DataLoader(Stream(), 8), "val_dataloaders": loaders()["val_dataloaders"]}
TRAINERS: dict[str, dict[str, Any]] = {
    "fast_dev_run": {"fast_dev_run": 3},
    "steps": {"max_epochs": -1, "max_steps": 40},
    "accumulation": {"accumulate_grad_batches": 3},
    "less than an epoch": {
        "max_epochs": -1, "max_steps": 7, "options": {"warmup": 0, "sparsify": "5 steps"},
    },
    "data without a length": {
        "max_epochs": -1, "max_steps": 24, "val_check_interval": 8, "data": STREAM,
        "options": {"warmup": 0.2, "sparsify": 0.5},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", TRAINERS)
def test_trainers_of_all_kinds(method: str, kind: str, tmp_path: Path) -> None:
    module, callback, _ = run(tmp_path, method, **TRAINERS[kind])
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
    assert not ours_left_on(module)
    assert zeros(module) > 0 or size(module) < size(Toy())
    with pytest.warns(UserWarning, match=r"in the warm-up, after 8 batches .* begin after 16: nothing was pruned"):
        module, _, _ = run(tmp_path, method, callbacks=[Stop(0)], options={"warmup": 2, "sparsify": 2})
    assert zeros(module) == 0
    assert size(module) == size(Toy())
