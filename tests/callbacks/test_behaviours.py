"""The promises × every method: budget, phases, what stays removed. `test_table` has the ways to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from tests.callbacks.methods import check_budget, removes_channels, run, size
from tests.toy import Toy, ours_left_on, samples, zeros


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
