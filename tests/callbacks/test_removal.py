"""What the family that removes channels promises: the network shrinks in mid-fit, in place, and trains on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from lightning_prune import LTPCallback, sparsity_report
from tests.callbacks.methods import CHANNELS, PHASES, SCALES, Make, equal, fit, size
from tests.toy import Toy, loaders, samples, trainer


@pytest.fixture(params=CHANNELS)
def make(request: pytest.FixtureRequest) -> Make:
    return CHANNELS[request.param]


class AtRemoval(lightning.Callback):
    """Notes what is true just before the removal and just after it."""

    def __init__(self, callback: Any) -> None:
        self.callback = callback
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}

    def note(self, trainer: lightning.Trainer, module: Any) -> dict[str, Any]:
        was = module.training
        module.eval()
        with torch.no_grad():
            output = module(samples(32, seed=1).tensors[0])
        module.train(was)
        return {
            "output": output, "params": list(module.parameters()), "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "size": size(module), "copy": copy.deepcopy(module.net), "seen": self.callback.seen,
        }  # fmt: skip

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.callback.stage == "pruned" and not self.after:
            self.after = self.note(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self.callback.stage == "soft":
            self.before = self.note(trainer, pl_module)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", CHANNELS)
def test_it_shrinks_in_place_and_computes_what_the_masked_network_does(
    name: str, optimizer: str, tmp_path: Path
) -> None:
    callback = CHANNELS[name](target_macs=0.5, **PHASES | {"recalibrate_batches": 0})
    watch, module = AtRemoval(callback), Toy(optimizer=optimizer)
    torch.manual_seed(0)
    run = trainer(tmp_path, [callback, watch])
    run.fit(module, **loaders())
    before, after = watch.before, watch.after
    assert before["seen"] == after["seen"] == 32
    assert after["size"] < 0.8 * before["size"]
    assert all(a is b for a, b in zip(before["params"], after["params"], strict=True))
    assert before["lr"] == after["lr"]
    assert callback.pruned.proof.equal
    for p, state in run.optimizers[0].state.items():
        assert all(v.shape == p.shape for v in state.values() if v.ndim)
    assert module.net[0].out_channels == module.net[1].num_features == len(module.net[1].weight)
    if name in SCALES:  # the dense network with those scale factors at zero; the betas are zero by then, or folded
        masked = before["copy"].eval()
        for norm, cut in ((masked[int(n[0])], c) for n, c in callback.pruned.plan.cuts.items() if n in NORMS):
            gone = torch.ones(cut.shape[0], dtype=torch.bool)
            gone[list(cut.kept[0])] = False
            norm.weight.data[gone] = 0
        close = 2e-2 if callback.pruned.notes else 1e-5  # padding may cut a constant off, and a note says so
        torch.testing.assert_close(after["output"], masked(samples(32, seed=1).tensors[0]), rtol=close, atol=close)


NORMS = ("1.weight", "4.weight")


def test_retrain_starts_from_fresh_weights_without_optimizer_state(make: Make, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.callbacks[0].stage == "pruned" and not seen:
                seen["scales"] = pl_module.net[1].weight.detach().clone()
                seen["state"] = len(trainer.optimizers[0].state)

    module, _, _ = fit(tmp_path, make, callbacks=[Watch()], options={"after": "retrain"})
    assert bool((seen["scales"] == 1).all())
    assert seen["state"] == 0
    assert size(module) < size(Toy())


def test_compiled_network(make: Make, tmp_path: Path) -> None:
    module = Toy()
    module.net = torch.compile(module.net, backend="aot_eager")
    module, callback, _ = fit(tmp_path, make, module)
    assert callback.stage == "pruned"
    assert size(module) < size(Toy())


def test_in_one_shot_after_the_warmup(make: Make, tmp_path: Path) -> None:
    module, callback, _ = fit(tmp_path, make, options={"warmup": 2, "sparsify": 0})
    assert callback.stage == "pruned"
    assert size(module) < size(Toy())


def test_a_phase_that_ends_with_the_training_prunes_and_says_so(make: Make, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ended in the sparsify phase, at"):
        module, callback, _ = fit(tmp_path, make, options={"warmup": 1, "sparsify": 1.0 - 1 / 6})
    assert callback.stage == "pruned"
    assert size(module) < size(Toy())


def test_two_fits_prune_twice_and_then_weights_too(make: Make, tmp_path: Path) -> None:
    module, first, _ = fit(tmp_path, make, options={"target_macs": 0.7})
    between = size(module)
    module, second, run = fit(tmp_path, make, module, options={"target_macs": 0.7})
    assert size(module) < between < size(Toy())
    assert first.numbers["macs"] <= 0.7
    assert second.numbers["macs"] <= 0.7
    run.save_checkpoint(tmp_path / "twice.ckpt")
    fresh = Toy()
    trainer(tmp_path, [make()]).validate(fresh, loaders()["val_dataloaders"], tmp_path / "twice.ckpt", verbose=False)
    assert equal(module, fresh)
    sparse, _, _ = fit(tmp_path, LTPCallback, module, options={"target_sparsity": 0.5})
    assert sparsity_report(sparse).sparsity == pytest.approx(0.5, abs=0.01)


class Outer(Toy):
    """A layer of its own behind the network."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.extra(self.net(x))


def test_the_network_is_found_or_named(make: Make, tmp_path: Path) -> None:
    module, callback, _ = fit(tmp_path, make, Outer(), options={"network": "net"})
    assert callback.root is module.net
    assert size(module) < size(Outer())
    module, callback, _ = fit(tmp_path, make, Outer())
    assert callback.root is module
    assert size(module) < size(Outer())
    with pytest.raises(ValueError, match=r"network='body' is not a module of Outer; it has net, extra"):
        fit(tmp_path, make, Outer(), options={"network": "body"})
