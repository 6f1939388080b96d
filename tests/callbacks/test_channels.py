"""Behaviours × structured methods: shrink in mid-fit, keep training, compile, retrain, log, save."""

import copy

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_prune import LTPCallback, PlanError, TimmClassifier, load_pruned, save_pruned, sparsity_report
from tests.callbacks.structured import METHODS, PHASES, equal, fit, size
from tests.toy import Stream, Toy, loaders, samples, trainer


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


class AtRemoval(lightning.Callback):
    """Notes what is true just before the removal and just after it."""

    def __init__(self, callback):
        self.callback, self.before, self.after = callback, {}, {}

    def note(self, trainer, module):
        module_was = module.training
        module.eval()
        with torch.no_grad():
            output = module(loaders()["val_dataloaders"].dataset.tensors[0])
        module.train(module_was)
        return {
            "output": output, "params": list(module.parameters()), "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "size": size(module), "copy": copy.deepcopy(module.net), "seen": self.callback.seen,
        }  # fmt: skip

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.callback.stage == "pruned" and not self.after:
            self.after = self.note(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        if self.callback.stage == "soft":
            self.before = self.note(trainer, pl_module)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_shrinks_in_mid_fit_in_place_and_keeps_training(method, optimizer, tmp_path):
    callback = method(target_macs=0.5, **PHASES | {"recalibrate_batches": 0})
    watch, module = AtRemoval(callback), Toy(optimizer=optimizer)
    torch.manual_seed(0)
    run = trainer(tmp_path, [callback, watch])
    run.fit(module, **loaders())
    assert watch.before["seen"] == watch.after["seen"] == 32
    assert watch.after["size"] < 0.8 * watch.before["size"]
    assert all(a is b for a, b in zip(watch.before["params"], watch.after["params"], strict=True))
    assert watch.before["lr"] == watch.after["lr"]
    assert callback.numbers["macs"] <= 0.5
    assert callback.pruned.proof.equal
    for p, state in run.optimizers[0].state.items():
        assert all(v.shape == p.shape for v in state.values() if v.ndim)
    # what the compact model computes is what the dense one computes with those scale factors at zero
    masked = watch.before["copy"]
    for name, cut in callback.pruned.plan.cuts.items():
        if name in ("1.weight", "4.weight"):
            gone = torch.ones(cut.shape[0], dtype=torch.bool)
            gone[list(cut.kept[0])] = False
            norm = masked[int(name[0])]
            norm.weight.data[gone] = 0
    x = loaders()["val_dataloaders"].dataset.tensors[0]
    close = 2e-2 if callback.pruned.notes else 1e-5  # padding may cut a constant off at the border, and a note says so
    torch.testing.assert_close(watch.after["output"], masked.eval()(x), rtol=close, atol=close)
    # every parameter still trains
    fresh = samples(8).tensors
    module.zero_grad()
    nn.functional.cross_entropy(module(fresh[0]), fresh[1]).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape and p.grad.abs().sum() > 0 for p in module.parameters())
    assert module.net[0].out_channels == module.net[1].num_features == len(module.net[1].weight)
    assert not any(key.startswith("on_") for key in vars(module))


def test_retrain_starts_from_fresh_weights_without_optimizer_state(method, tmp_path):
    seen = {}

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if callback.stage == "pruned" and not seen:
                seen["scales"] = pl_module.net[1].weight.detach().clone()
                seen["state"] = len(trainer.optimizers[0].state)

    callback = method(after="retrain", **PHASES)
    torch.manual_seed(0)
    module = Toy()
    trainer(tmp_path, [callback, Watch()]).fit(module, **loaders())
    assert bool((seen["scales"] == 1).all())
    assert seen["state"] == 0
    assert size(module) < size(Toy())


def test_compiled_network(method, tmp_path):
    module = Toy()
    module.net = torch.compile(module.net, backend="aot_eager")
    module, callback, _ = fit(tmp_path, method, module)
    assert callback.stage == "pruned"
    assert size(module) < size(Toy())


def test_one_shot_and_fast_dev_run(method, tmp_path):
    module, callback, _ = fit(tmp_path, method, options={"warmup": 2, "sparsify": 0})
    assert callback.stage == "pruned"
    assert size(module) < size(Toy())
    module, callback, _ = fit(tmp_path, method, fast_dev_run=3)
    assert callback.stage == "pruned"


def test_metrics_are_logged(method, tmp_path):
    seen = []

    class Table(lightning.pytorch.loggers.logger.DummyLogger):
        def log_metrics(self, metrics, step=None):
            seen.append(metrics)

    _, callback, run = fit(tmp_path, method, logger=Table(), options={"latency_batch": 1})
    assert run.callback_metrics["prune/macs"].item() == pytest.approx(callback.numbers["macs"])
    keys = {key for row in seen for key in row}
    assert {"prune/macs", "prune/params", "prune/channels", "prune/phase", "prune/gap", "prune/latency_ms",
            "prune/latency_dense_ms", "prune/layer/1/threshold", "prune/layer/4/channels", "prune/soft_accuracy",
            "prune/hard_accuracy"} <= keys  # fmt: skip
    phases = [row["prune/phase"] for row in seen if "prune/phase" in row]
    assert phases[0] == 0
    assert 1 in phases
    assert phases[-1] == 2


def test_named_network_and_a_module_without_forward(method, tmp_path):
    class Odd(Toy):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(4, 4)

        def forward(self, x):
            return self.extra(self.net(x))

    module, callback, _ = fit(tmp_path, method, Odd(), options={"network": "net"})
    assert callback.root is module.net
    assert size(module) < size(Odd())
    module, callback, _ = fit(tmp_path, method, Odd())  # the module itself is the network
    assert size(module) < size(Odd())
    with pytest.raises(ValueError, match=r"network='body' is not a module of Odd; it has net, extra"):
        fit(tmp_path, method, Odd(), options={"network": "body"})


def test_a_training_set_without_a_length(method, tmp_path):
    data = {"train_dataloaders": DataLoader(Stream(), 8), "val_dataloaders": loaders()["val_dataloaders"]}
    options = {"warmup": 0.2, "sparsify": 0.5}
    module, callback, _ = fit(
        tmp_path, method, data=data, options=options, max_epochs=-1, max_steps=24, val_check_interval=8
    )
    assert callback.stage == "pruned"
    assert size(module) < size(Toy())


def test_two_fits_prune_twice_and_then_weights_too(method, tmp_path):
    module, first, _ = fit(tmp_path, method, options={"target_macs": 0.7})
    between = size(module)
    module, second, run = fit(tmp_path, method, module, options={"target_macs": 0.7})
    assert size(module) < between < size(Toy())
    assert first.numbers["macs"] <= 0.7
    assert second.numbers["macs"] <= 0.7
    run.save_checkpoint(tmp_path / "twice.ckpt")
    fresh = Toy()
    trainer(tmp_path, [method()]).validate(fresh, loaders()["val_dataloaders"], tmp_path / "twice.ckpt", verbose=False)
    assert equal(module, fresh)
    sparse, _, _ = fit(tmp_path, lambda **_: LTPCallback(target_sparsity=0.5), module)
    assert sparsity_report(sparse).sparsity == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="cannot prune in the same fit"):
        fit(tmp_path, method, callbacks=[LTPCallback()])


def test_a_latency_target_is_met_by_measuring(method, tmp_path, monkeypatch):
    """With a clock that counts parameters: the search finds the share of MACs that gives the asked ratio."""
    from lightning_prune.channels.select import latency as latency_budget
    from lightning_prune.support.latency import Latency

    asked = []

    def clock(before, after, example_input, batch):
        asked.append(batch)
        return Latency(1.0, 1.0, size(after) / size(before), batch, 1)

    monkeypatch.setattr(latency_budget, "compare_latency", clock)

    def wide():
        torch.manual_seed(0)
        return TimmClassifier("test_resnet", num_classes=4, in_chans=1)

    module, _callback, _ = fit(
        tmp_path, method, wide(), options={"target_latency": 0.6, "latency_batch": 4}, max_epochs=5
    )
    assert size(module) / size(wide()) == pytest.approx(0.6, abs=0.02)
    assert set(asked) == {4}
    with pytest.raises(PlanError, match=r"target_latency=0.01 cannot be met: .* still takes 0\.\d+"):
        fit(tmp_path, method, wide(), options={"target_latency": 0.01, "min_keep": 0.5}, max_epochs=5)


def test_classifier_saves_loads_and_goes_without_a_trainer(method, tmp_path):
    def classifier():
        torch.manual_seed(0)
        return TimmClassifier("test_resnet", num_classes=4, in_chans=1)

    module, callback, run = fit(tmp_path, method, classifier(), options={"target_macs": 0.5}, max_epochs=5)
    assert 0.49 <= callback.numbers["macs"] <= 0.5
    run.save_checkpoint(tmp_path / "compact.ckpt")
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    x = torch.randn(2, 1, 8, 8)
    for name in ("compact.ckpt", "weights.ckpt"):
        again = TimmClassifier.load_from_checkpoint(tmp_path / name, map_location="cpu")
        assert equal(module, again)
        assert torch.equal(module.eval()(x), again.eval()(x))
    loaded = load_pruned(save_pruned(module, tmp_path / "compact.safetensors"))
    assert torch.equal(module.model(x), loaded.eval()(x))
    assert (tmp_path / "compact.safetensors").stat().st_size < 4.6 * size(module)
