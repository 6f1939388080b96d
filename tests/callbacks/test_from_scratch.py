"""Pruning from Scratch: the core of the promises, the search on random weights, and the fresh network after it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from lightning_prune import PruningFromScratchCallback, TimmClassifier
from lightning_prune.callbacks.methods.channels.from_scratch import ChannelScale, sparsity_loss
from tests.callbacks import test_behaviours as promises
from tests.callbacks import test_behaviours_checkpoints as checkpoints
from tests.callbacks import test_behaviours_left_behind as left_behind
from tests.callbacks.methods import equal, fit, macs
from tests.toy import Toy, loaders, network, trainer

NAME = "from scratch"


def test_budget(tmp_path: Path) -> None:
    promises.test_the_budget_is_met_and_stays_met_through_finetune(NAME, tmp_path)


def test_resume(tmp_path: Path) -> None:
    checkpoints.check_resume(tmp_path, NAME, "adamw", (9, 24, 33))


def test_checkpoints(tmp_path: Path) -> None:
    checkpoints.test_checkpoints_are_plain_in_every_phase(NAME, tmp_path / "plain")
    checkpoints.test_evaluation_of_a_soft_checkpoint_sees_what_training_saw(NAME, tmp_path / "soft")


def test_nothing_is_left(tmp_path: Path) -> None:
    left_behind.test_nothing_is_left_on_the_module(NAME, tmp_path)


def test_penalties_of_gates_add_up_to_the_gradient_of_the_shared_loss() -> None:
    values: list[Tensor] = []
    gates = [ChannelScale(torch.tensor(ids), values, 0.5, 0.2, "cpu") for ids in ([0, 1, -1, 2], [3, -1])]
    assert [len(v) for v in values] == [3, 1]
    with torch.no_grad():
        values[0].copy_(torch.tensor([0.1, 0.6, 0.9]))
    torch.stack([gate.penalty() for gate in gates]).sum().backward()
    mean = (0.1 + 0.6 + 0.9 + 1.0) / 4
    for v in values:
        torch.testing.assert_close(v.grad, torch.full_like(v, 0.5 * 2 * (mean - 0.2) / 4))
    assert float(sparsity_loss(values, 0.2)) == pytest.approx((mean - 0.2) ** 2)
    x = torch.ones(2, 4, 3, 3)
    torch.testing.assert_close(gates[0](x)[1, :, 0, 0], torch.tensor([0.1, 0.6, 1.0, 0.9]))  # what stays has no gate


class Watch(lightning.Callback):
    """What holds in the search, and right after it."""

    def __init__(self, callback: PruningFromScratchCallback) -> None:
        self.callback, self.moved, self.after = callback, False, {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.before = copy.deepcopy(pl_module.net)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self.callback.stage == "soft":
            pairs = zip(self.before.parameters(), pl_module.net.parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
            assert not trainer.optimizers[0].state
            gates = torch.cat([scale.values.detach() for scale in self.callback.scales.values()])
            assert bool(((gates >= 0) & (gates <= 1)).all())
            self.gates, self.spread = gates, float(gates.std())
            self.moved = not torch.equal(self.before[1].running_mean, pl_module.net[1].running_mean)

    def on_channels_removed(self, trainer: Any, module: Any, plan: Any) -> None:
        self.after = {name: p.detach().clone() for name, p in module.net.named_parameters()}


def test_an_average_starts_anew_with_the_fresh_network(tmp_path: Path) -> None:
    ema, seen = EMAWeightAveraging(decay=0.9), []

    class Look(PruningFromScratchCallback):
        def remove(self, trainer: Any, pl_module: Any, early: bool) -> bool:
            done = super().remove(trainer, pl_module, early)
            seen.append(equal(ema._average_model.module.net, pl_module.net))  # type: ignore[union-attr]
            return done

    trainer(tmp_path, [ema, Look(sparsify=1)], max_epochs=2).fit(Toy(), **loaders())
    assert seen == [True]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_gates_alone_move_in_the_search_and_the_network_after_it_is_fresh(optimizer: str, tmp_path: Path) -> None:
    options = {"sparsify": 3, "gate_lr": 0.1, "recalibrate_batches": 0, "target_macs": 0.5}
    callback = PruningFromScratchCallback(**options)  # type: ignore[arg-type]
    watch = Watch(callback)
    torch.manual_seed(0)
    trainer(tmp_path, [callback, watch], max_epochs=4).fit(Toy(optimizer=optimizer), **loaders())
    assert watch.moved  # BatchNorm is in train mode
    assert watch.spread > 0.1
    assert 0.1 < float(watch.gates.mean()) < 0.45  # from 1 towards the ratio of 0.2
    selection = callback.selection
    assert selection is not None
    kept, gone = (selection.score[mask & selection.score.isfinite()] for mask in (selection.keep, ~selection.keep))
    assert float(gone.max()) <= float(kept.min())  # one order for the whole network
    cut = watch.before[3].weight[:, : watch.after["3.weight"].shape[1]]
    assert not torch.isin(watch.after["3.weight"], cut).any()
    assert bool((watch.after["1.weight"] == 1).all())


def test_norms_that_start_at_zero_hide_nothing_and_prove_nothing(tmp_path: Path) -> None:
    module = Toy()
    nn.init.zeros_(module.net[4].weight)
    options = {"sparsify": 2, "warmup": 0, "gate_lr": 0.05, "target_macs": 0.5}
    _, callback, _ = fit(tmp_path, PruningFromScratchCallback, module, options=options, max_epochs=3)
    assert float(callback.scales["1"].values.detach().std()) > 0.01
    assert not callback.pruned.plan.empty
    assert macs(module.net) <= 0.5 * macs(network())


def test_tied_channels_of_a_resnet_meet_the_target(tmp_path: Path) -> None:
    module = TimmClassifier("resnet20_cifar", num_classes=4, model_kwargs={"width": 8})
    dense = macs(copy.deepcopy(module.model))
    callback = PruningFromScratchCallback(target_macs=0.4, sparsify=0.5, gate_lr=0.05, recalibrate_batches=0)
    run = trainer(tmp_path, [callback], max_epochs=2, limit_train_batches=4, limit_val_batches=0)
    run.fit(module, **loaders())
    assert macs(module.model) == pytest.approx(0.4 * dense, rel=0.05)
    assert callback.numbers["macs"] == pytest.approx(macs(module.model) / dense)


def test_wrong_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ratio=1.0 is the mean gate .* in \(0, 1\)"):
        PruningFromScratchCallback(ratio=1.0)
    with pytest.raises(ValueError, match=r"lam=-1 must not be negative, and gate_lr=0.01"):
        PruningFromScratchCallback(lam=-1)
    with pytest.raises(TypeError, match="no option 'after'"):
        PruningFromScratchCallback(after="finetune")  # type: ignore[call-arg]
    module = Toy()
    module.net[1] = module.net[4] = nn.Identity()
    with pytest.raises(ValueError, match="decides by BatchNorm scale factors, and Sequential has none"):
        fit(tmp_path, PruningFromScratchCallback, module)
