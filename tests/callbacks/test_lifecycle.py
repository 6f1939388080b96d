"""Behaviours × methods: exact budgets, zeros that survive, nothing left behind, every way of building and breaking."""

import copy
import pickle

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from lightning_prune import LTPCallback, MagnitudeCallback, PrunedFileError, save_pruned, sparsity_report
from tests.toy import Stream, Toy, loaders, network, ours_left_on, trainer, zeros

N = 8 * 9 + 16 * 8 * 9 + 16 * 4  # prunable weights of the toy network


def oneshot(**options):
    return MagnitudeCallback(schedule="oneshot", **options)


METHODS = {"ltp": LTPCallback, "magnitude": MagnitudeCallback, "oneshot": oneshot}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def dense_keys():
    return list(Toy().state_dict())


@pytest.mark.parametrize("target", [0.0, 0.5, 0.8, 0.95])
def test_target_is_met_to_the_weight_and_survives_finetune(method, target, tmp_path):
    module, callback = Toy(), method(target_sparsity=target, sparsify=3)
    trainer(tmp_path, [callback]).fit(module, **loaders())
    assert callback.stage == "pruned"
    assert abs(zeros(module) - target * N) <= 1
    assert sparsity_report(module).zeros == zeros(module)


def test_compression_target(method, tmp_path):
    module = Toy()
    trainer(tmp_path, [method(target_compression=4)]).fit(module, **loaders())
    assert sparsity_report(module).compression == pytest.approx(4, rel=1e-2)


@pytest.mark.parametrize("built", ["init", "setup", "configure_model"])
def test_wherever_the_network_is_built_nothing_is_left_on_it(method, built, tmp_path):
    module = Toy(built)
    during = []

    class Watch(lightning.Callback):
        def on_validation_start(self, trainer, pl_module):
            during.append(bool(ours_left_on(pl_module)))

    trainer(tmp_path, [method(), Watch()], num_sanity_val_steps=0).fit(module, **loaders())
    assert any(during)
    assert not during[-1]  # finetune runs on a plain module
    assert not ours_left_on(module)
    assert {type(m) for m in module.net} == {type(m) for m in network()}
    assert list(module.state_dict()) == dense_keys()
    network().load_state_dict(module.net.state_dict())  # strict


@pytest.mark.parametrize("where", ["training_step", "validation_step"])
def test_an_exception_leaves_a_plain_module_and_a_second_fit_works(method, where, tmp_path):
    module = Toy()
    original, calls = getattr(module, where), []

    def broken(*args):
        calls.append(1)
        if len(calls) == 20:
            raise ZeroDivisionError("on purpose")
        return original(*args)

    setattr(module, where, broken)
    callback = method(sparsify=11)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        trainer(tmp_path, [callback], max_epochs=12).fit(module, **loaders())
    assert callback.stage == "soft"
    assert not ours_left_on(module)
    delattr(module, where)
    trainer(tmp_path, [callback], max_epochs=12).fit(module, **loaders())
    assert callback.stage == "pruned"
    assert not ours_left_on(module)
    assert abs(zeros(module) - 0.9 * N) <= 1


def test_copies_in_the_sparsify_phase_are_plain_and_dense(method, tmp_path):
    module, copies = Toy(), []

    class Copy(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if ours_left_on(pl_module) and not copies:
                copies.append(copy.deepcopy(pl_module.net))
                copies.append(pickle.loads(pickle.dumps(pl_module.net)))
                copies.append({n: p.detach().clone() for n, p in pl_module.net.named_parameters()})

    trainer(tmp_path, [method(), Copy()]).fit(module, **loaders())
    *nets, raw = copies
    for net in nets:
        assert not ours_left_on(net)
        assert type(net[0]) is nn.Conv2d
        for name, param in net.named_parameters():
            assert torch.equal(param, raw[name])
        net(torch.zeros(1, 1, 8, 8)).sum().backward()


def test_every_surviving_weight_still_trains_and_no_pruned_one_moves(method, tmp_path):
    module, snapshots = Toy(optimizer="adamw"), []

    class Snapshot(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            snapshots.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})

    trainer(tmp_path, [method(sparsify=2), Snapshot()]).fit(module, **loaders())
    first, last = snapshots[2], snapshots[-1]
    for name in first:
        moved = first[name] != last[name]
        assert not moved[first[name] == 0].any() or "weight" not in name
        if first[name].ndim > 1:
            assert moved[first[name] != 0].float().mean() > 0.9, name


class EMA(EMAWeightAveraging):
    def __init__(self):
        super().__init__(decay=0.8)


@pytest.mark.parametrize("average", [EMA, lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)])
@pytest.mark.parametrize("first", ["pruning", "averaging"])
def test_averaged_copies_are_pruned_too(method, average, first, tmp_path):
    module, callbacks = Toy(), [method(sparsify=3), average()]
    if first == "averaging":
        callbacks.reverse()
    trainer(tmp_path, callbacks).fit(module, **loaders())
    assert abs(zeros(module) - 0.9 * N) <= 1
    assert not ours_left_on(module)


def test_warmup_is_dense_and_phases_follow(method, tmp_path):
    stages = []

    class Watch(lightning.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                stages.append((callback.stage, callback.phases.at(callback.seen)))

    callback = method(warmup=2, sparsify=2)
    trainer(tmp_path, [callback, Watch()]).fit(Toy(), **loaders())
    # The prune happens before the validation at the end of the sparsify phase, so that epoch is judged pruned.
    assert [s for s, _ in stages] == ["dense", "dense", "soft", "pruned", "pruned", "pruned"]
    assert [p for _, p in stages] == ["warmup", "sparsify", "sparsify", "finetune", "finetune", "finetune"]


def test_training_shorter_than_an_epoch(method, tmp_path):
    module = Toy()
    trainer(tmp_path, [method(sparsify="5 steps")], max_epochs=-1, max_steps=7).fit(module, **loaders())
    assert abs(zeros(module) - 0.9 * N) <= 1


def test_fast_dev_run(method, tmp_path):
    module = Toy()
    trainer(tmp_path, [method(warmup=3, sparsify=30)], fast_dev_run=2).fit(module, **loaders())
    assert abs(zeros(module) - 0.9 * N) <= 1


@pytest.mark.filterwarnings("default:Training ended in the sparsify phase")
def test_stopping_early_still_prunes_and_says_so(tmp_path):
    module, callback = Toy(), LTPCallback(sparsify=0.9)

    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    with pytest.warns(UserWarning, match="ended in the sparsify phase"):
        trainer(tmp_path, [callback, Stop()], max_epochs=10).fit(module, **loaders())
    assert 0 < zeros(module) < 0.9 * N
    assert not ours_left_on(module)


def test_stopping_in_the_warmup_says_that_nothing_was_pruned(tmp_path):
    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    module = Toy()
    with pytest.warns(
        UserWarning, match=r"ended in the warm-up, after 8 batches .* begin after 24: nothing was pruned"
    ):
        trainer(tmp_path, [LTPCallback(warmup=3, sparsify=3), Stop()]).fit(module, **loaders())
    assert zeros(module) == 0


def test_saving_in_the_sparsify_phase_is_refused(tmp_path):
    class Save(lightning.Callback):
        def on_validation_end(self, trainer, pl_module):
            if ours_left_on(pl_module):
                save_pruned(pl_module.net, tmp_path / "early.safetensors")

    with pytest.raises(PrunedFileError, match=r"zeros are not in the weights yet.*Save it after fit"):
        trainer(tmp_path, [LTPCallback(), Save()]).fit(Toy(), **loaders())
    assert not (tmp_path / "early.safetensors").exists()


class Tied(Toy):
    """Two linear layers share one weight, and one conv is used twice."""

    def __init__(self):
        super().__init__()
        tied = nn.Linear(16, 16)
        shared = nn.Conv2d(16, 16, 1)
        self.net = nn.Sequential(
            *network()[:6], shared, nn.ReLU(), shared, *network()[6:8], tied, nn.Linear(16, 16), nn.Linear(16, 4)
        )
        self.net[12].weight = tied.weight


def test_tied_and_shared_weights_get_one_threshold(method, tmp_path):
    module, callback = Tied(), method(target_sparsity=0.5)
    trainer(tmp_path, [callback]).fit(module, **loaders())
    names = [t.name for t in callback.units.targets]
    assert names == [f"net.{i}.weight" for i in (0, 3, 6, 11, 13)]
    assert module.net[11].weight is module.net[12].weight
    total = sum(t.numel for t in callback.units.targets)
    assert abs(sparsity_report(module).zeros - total / 2) <= 1
    assert sparsity_report(module).prunable == total


class Attention(Toy):
    """torch's MultiheadAttention keeps its projections outside any Linear."""

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict(
            {"embed": nn.Linear(8, 16), "mix": nn.MultiheadAttention(16, 2, batch_first=True), "head": nn.Linear(16, 4)}
        )

    def forward(self, x):
        tokens = self.net["embed"](x[:, 0])
        return self.net["head"](self.net["mix"](tokens, tokens, tokens)[0].mean(1))


def test_attention_projections_are_pruned(method, tmp_path):
    module, callback = Attention(), method(target_sparsity=0.75)
    trainer(tmp_path, [callback]).fit(module, **loaders())
    assert "net.mix.in_proj_weight" in [t.name for t in callback.units.targets]
    total = sum(t.numel for t in callback.units.targets)
    pruned = sum(t.numel - int(torch.count_nonzero(t.param)) for t in callback.units.targets)
    assert abs(pruned - 0.75 * total) <= 1
    assert sparsity_report(module).zeros == pruned


def test_include_and_exclude_leave_the_rest_dense(method, tmp_path):
    module = Toy()
    trainer(tmp_path, [method(exclude=["net.8"], skip_first=True)]).fit(module, **loaders())
    report = {layer.name: layer.sparsity for layer in sparsity_report(module).layers}
    assert report["net.0.weight"] == report["net.8.weight"] == 0
    assert report["net.3.weight"] == pytest.approx(0.9, abs=1e-3)


def test_min_keep_holds_in_every_layer(method, tmp_path):
    module = Toy()
    trainer(tmp_path, [method(target_sparsity=0.9, min_keep=0.08)]).fit(module, **loaders())
    assert all(layer.sparsity <= 0.92 + 1 / layer.numel for layer in sparsity_report(module).layers)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_learned_thresholds_differ_and_the_kept_share_tracks_its_path(accumulate, tmp_path):
    """The controller brings the soft network near the budget, so that the last common factor is small."""
    gaps = []

    class Track(LTPCallback):
        def learn(self, stats, active):
            super().learn(stats, active)
            if self.progress > 0.5:
                gaps.append(abs(float(self._kept()) - self._goal()))

    callback = Track(target_sparsity=0.8, sparsify=0.7)
    fit = trainer(tmp_path, [callback], max_epochs=40, accumulate_grad_batches=accumulate)
    fit.fit(Toy(), **loaders())
    u = callback.final_thresholds / callback._scale
    assert u.max() / u.min() > 1.1
    assert sum(gaps) / len(gaps) < 0.05


def test_masks_hold_one_copy_of_the_masked_weights_and_finetune_none(tmp_path):
    held = []

    class Measure(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            buffers = [g._masked for g in callback._gates.values() if g._masked is not None]
            held.append(sum(b.numel() * b.element_size() for b in buffers))

    callback = LTPCallback(sparsify=3)
    trainer(tmp_path, [callback, Measure()]).fit(Toy(), **loaders())
    assert max(held) == 4 * N
    assert held[-1] == 0


def test_a_training_set_without_a_length(method, tmp_path):
    module, callback = Toy(), method(target_sparsity=0.8)
    data = {"train_dataloaders": DataLoader(Stream(), 8), "val_dataloaders": loaders()["val_dataloaders"]}
    trainer(tmp_path, [callback], max_epochs=-1, max_steps=24, val_check_interval=8).fit(module, **data)
    assert callback.stage == "pruned"
    assert abs(zeros(module) - 0.8 * N) <= 1
