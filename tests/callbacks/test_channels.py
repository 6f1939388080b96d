"""Behaviours × structured methods: shrink in mid-fit, keep training, resume, average, compile, refuse."""

import copy

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from torch.utils.data import DataLoader

from lightning_prune import (
    LTPCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    PlanError,
    TimmClassifier,
    load_pruned,
    save_pruned,
    sparsity_report,
)
from lightning_prune.compact import plan_of
from tests.toy import Stream, Toy, loaders, samples, trainer

METHODS = {"mrts": MRTSCallback, "slimming": NetworkSlimmingCallback}
PHASES = {"warmup": 1, "sparsify": 3, "recalibrate_batches": 2}  # 8 batches an epoch: begin at 8, removal at 32


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def size(module):
    return sum(p.numel() for p in module.parameters())


def fit(path, method, module=None, callbacks=(), data=None, ckpt_path=None, options=None, **trainer_options):
    torch.manual_seed(0)
    module = Toy() if module is None else module
    callback = method(**(PHASES | (options or {})))
    run = trainer(path, [callback, *callbacks], enable_checkpointing=True, **trainer_options)
    run.fit(module, **(data or loaders()), ckpt_path=ckpt_path)
    return module, callback, run


def keep_all(path, every=3):
    return ModelCheckpoint(dirpath=path, filename="{step}", every_n_train_steps=every, save_top_k=-1)


def equal(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


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
        if self.callback.stage == "compact" and not self.after:
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
    assert callback.stage == "compact"
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


def test_retrain_starts_from_fresh_weights_without_optimizer_state(method, tmp_path):
    seen = {}

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if callback.stage == "compact" and not seen:
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
    assert callback.stage == "compact"
    assert size(module) < size(Toy())


def test_early_end_of_training_still_prunes_and_says_so(method, tmp_path):
    with pytest.warns(UserWarning, match="ended at .* of the sparsify phase"):
        module, callback, _ = fit(tmp_path, method, options={"warmup": 1, "sparsify": 1.0 - 1 / 6})
    assert callback.stage == "compact"
    assert size(module) < size(Toy())
    with pytest.warns(UserWarning, match="nothing was pruned"):
        module, callback, _ = fit(tmp_path, method, options={"warmup": 5, "sparsify": 1}, max_epochs=6, max_steps=48,
                                  callbacks=[StopAt(16)])  # fmt: skip
    assert size(module) == size(Toy())


class StopAt(lightning.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step >= self.step


def test_one_shot_and_fast_dev_run(method, tmp_path):
    module, callback, _ = fit(tmp_path, method, options={"warmup": 2, "sparsify": 0})
    assert callback.stage == "compact"
    assert size(module) < size(Toy())
    module, callback, _ = fit(tmp_path, method, fast_dev_run=3)
    assert callback.stage == "compact"


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
    assert callback.network is module.net
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
    assert callback.stage == "compact"
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


def test_an_exception_leaves_nothing_on_the_module_and_a_second_fit_works(method, tmp_path):
    class Fails(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 20:
                raise RuntimeError("in mid-phase")

    module = Toy()
    with pytest.raises(RuntimeError, match="in mid-phase"):
        fit(tmp_path, method, module, callbacks=[Fails()])
    assert not any(key.startswith("on_") for key in vars(module))
    module, callback, _ = fit(tmp_path, method, module)
    assert callback.stage == "compact"


def test_no_batchnorm_points_to_ltp(method, tmp_path):
    module = Toy()
    module.net[1] = module.net[4] = nn.Identity()
    with pytest.raises(ValueError, match=r"has none.*LTPCallback"):
        fit(tmp_path, method, module)


def test_a_budget_out_of_reach_names_the_layers(method, tmp_path):
    with pytest.raises(PlanError, match=r"target_macs=0.01 cannot be met: .*Raise the target"):
        fit(tmp_path, method, options={"target_macs": 0.01, "min_keep": 0.5})


def test_a_latency_target_is_met_by_measuring(method, tmp_path, monkeypatch):
    """With a clock that counts parameters: the search finds the share of MACs that gives the asked ratio."""
    from lightning_prune import latency_budget
    from lightning_prune.latency import Latency

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_macs": 1.5}, "target_macs=1.5"),
        ({"target_macs": 0.5, "delta": 0.1}, "target_macs=0.5, delta=0.1: give one"),
        ({"rule": "otsu"}, "rule='otsu'"),
        ({"delta": 3.0, "rule": "css"}, "delta=3.0"),
        ({"min_keep": 1.0}, "min_keep=1.0"),
        ({"divisor": 0}, "divisor=0"),
        ({"after": "rewind"}, "after='rewind'"),
        ({"surgery": {"divsor": 8}}, r"surgery has \['divsor'\]"),
        ({"tau": -1}, "tau=-1"),
        ({"information": "kl"}, "information='kl'"),
        ({"mode": "paper"}, "needs lam"),
        ({"travel": -1.0}, "travel=-1.0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MRTSCallback(**options)


@pytest.mark.parametrize("noise", [0.34, 1.0])
def test_noise_that_cannot_polarise_is_refused_with_the_reason(noise):
    with pytest.raises(ValueError, match=r"noise=.* does not polarise with tau=1.5: from 1/\(2·tau\) = 0.333"):
        MRTSCallback(noise=noise)


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


def test_a_norm_of_one_channel_stays_and_is_named(method, tmp_path):
    module = Toy()
    module.net[0], module.net[1] = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)
    module.net[3] = nn.Conv2d(1, 16, 3, stride=2)
    with pytest.warns(UserWarning, match="1: it has one channel"):
        module, callback, _ = fit(tmp_path, method, module)
    assert callback.numbers["macs"] <= 0.5
