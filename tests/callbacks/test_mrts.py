"""What MRTS does to scale factors: right under every optimizer and precision, two modes, thresholds in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune import MRTSCallback, NetworkSlimmingCallback
from lightning_prune.functional.mrts import GaussianChannel, proximal_step
from tests.toy import Toy, loaders, network, trainer

STEPS = 24


class Still(Toy):
    """A module whose loss moves nothing, so that scale factors move by the penalty alone."""

    def __init__(self, kind: str, manual: int = 0) -> None:
        super().__init__()
        self.kind, self.manual = kind, manual
        self.automatic_optimization = not manual
        generator = torch.Generator().manual_seed(1)
        for i in (1, 4):
            self.net[i].weight.data = 0.2 + 0.8 * torch.rand(len(self.net[i].weight), generator=generator)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = 0.0 * F.cross_entropy(self(batch[0]), batch[1])
        if not self.manual:
            return loss
        self.manual_backward(loss)
        optimizer = self.optimizers()
        if (batch_idx + 1) % self.manual == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        if self.kind == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.0)


class Count(MRTSCallback):
    count = 0

    def regularize(self, factors: Any, lr: torch.Tensor) -> None:
        self.count += 1
        super().regularize(factors, lr)


CASES = {
    "sgd": ("sgd", 0, {}, STEPS),
    "adamw": ("adamw", 0, {}, STEPS),
    "accumulated": ("adamw", 0, {"accumulate_grad_batches": 2}, STEPS // 2),
    "clipped": ("sgd", 0, {"gradient_clip_val": 1e-3}, STEPS),
    "bf16-mixed": ("adamw", 0, {"precision": "bf16-mixed"}, STEPS),
    "bf16-true": ("adamw", 0, {"precision": "bf16-true"}, STEPS),  # each step is less than γ's dtype can tell
    "manual": ("sgd", 1, {}, STEPS),
    "manual, accumulated by hand": ("adamw", 2, {}, STEPS // 2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_one_proximal_step_whatever_the_optimizer(case: str, tmp_path: Path) -> None:
    kind, manual, options, steps = CASES[case]
    callback, module = Count(mode="paper", lam=0.05, warmup=0, sparsify=1.0, delta=1e-3), Still(kind, manual)
    start = [module.net[i].weight.detach().clone() for i in (1, 4)]
    end = []

    class Before(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            end[:] = [pl_module.net[i].weight.detach().clone() for i in (1, 4)]

    with pytest.warns(UserWarning, match="removes no channel: the rule 'mass' with delta=0.001"):
        trainer(tmp_path, [callback, Before()], max_epochs=3, limit_val_batches=0, **options).fit(module, **loaders())
    assert callback.count == steps
    lr = 0.1 if kind == "sgd" else 0.01
    close = {"rtol": 2**-8, "atol": 0} if case == "bf16-true" else {"rtol": 1e-5, "atol": 1e-6}
    for gamma, got in zip(start, end, strict=True):
        gamma = gamma.to(got.dtype).float()
        for _ in range(callback.count):
            gamma = proximal_step(gamma, 0.05 * lr, 1.5, GaussianChannel(0.25), 1.0)
        torch.testing.assert_close(got.float(), gamma, **close)


def test_a_skipped_optimizer_step_regularizes_nothing(tmp_path: Path) -> Any:
    """Loss scaling overflows in the first steps at a scale of 2^28; the scaler skips the optimizer."""

    class Loud(Still):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1])

    callback = Count(mode="paper", lam=0.05, warmup=0, sparsify=1.0, delta=1e-3)
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**28, growth_interval=10**6)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer(tmp_path, [callback], max_epochs=3, limit_val_batches=0, plugins=[plugin]).fit(Loud("sgd"), **loaders())
    skipped = round(-torch.log2(torch.tensor(scaler.get_scale() / 2.0**28)).item())
    assert 0 < skipped < STEPS
    assert callback.count == STEPS - skipped


def modes(path: Path, method: Any) -> Any:
    """Sizes of the two norms of the toy network just before the removal, in units of their mean at the start."""
    torch.manual_seed(0)
    module, sizes = Toy(), {}
    module.net = wide()
    callback = method(target_macs=0.4, warmup=1, sparsify=4)

    class Before(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if callback.stage == "soft":
                for i in (1, 4):
                    sizes[i] = (pl_module.net[i].weight.detach().abs() / 1.0, callback.selection)

    trainer(path, [callback, Before()], max_epochs=6).fit(module, **loaders())
    return sizes, callback


def wide() -> Any:
    torch.manual_seed(0)
    net = network()
    net[0], net[1] = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32)
    net[3], net[4], net[8] = nn.Conv2d(32, 64, 3, stride=2), nn.BatchNorm2d(64), nn.Linear(64, 4)
    return net


def test_mutual_regularization_makes_two_modes_and_l1_one(tmp_path: Path) -> None:
    """The paper's figures 3 and 6: modes at 0 and at a large value with MR, one near 0 with L1."""
    polar, callback = modes(tmp_path, MRTSCallback)
    for gamma, choice in polar.values():
        low, high = gamma < 0.1, gamma > 0.5
        assert int(low.sum()) >= 0.25 * len(gamma)
        assert int(high.sum()) >= 0.25 * len(gamma)
        assert int((~low & ~high).sum()) <= 0.1 * len(gamma)  # hardly anything in between
        assert 0 < float(choice.gap) <= 1.2
    assert callback.numbers["gap"] > 0.3
    single, _ = modes(tmp_path, NetworkSlimmingCallback)
    for gamma, _ in single.values():
        spread = gamma.max() - gamma.min()
        assert gamma.max() < 0.6
        assert spread < 0.35
        ordered = gamma.sort().values
        assert ordered.diff().max() < 0.5 * spread  # without a gap in it


@pytest.mark.parametrize("information", ["gaussian", "binned", "labels"])
@pytest.mark.parametrize("rule", ["css", "mass", "exp", "global"])
def test_every_estimator_and_rule_meets_the_budget(information: str, rule: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Toy()
    module.net = wide()
    callback = MRTSCallback(target_macs=0.5, information=information, rule=rule, warmup=1, sparsify=2)
    trainer(tmp_path, [callback], max_epochs=4).fit(module, **loaders())
    assert 0.46 <= callback.numbers["macs"] <= 0.5  # one channel of so small a network costs 3 %


def test_label_information_singles_out_the_channels_that_tell_the_class(tmp_path: Path) -> None:
    """Channel 0 of the first conv is bright where the image is, channel 1 is silent."""
    torch.manual_seed(0)
    module = Toy()
    with torch.no_grad():
        module.net[0].weight[:2] = 0
        module.net[0].weight[0] = 1.0
    got = {}

    class Note(MRTSCallback):
        def selected(self, units: Any, selection: Any) -> None:
            if not got:
                ids = units.graph.axes["1.weight"][0]
                local = [int((self.factors.groups == g).nonzero()) for g in ids.tolist()]
                got["total"], got["within"], got["first"] = self._total.clone(), self._within.clone(), local
            super().selected(units, selection)

    callback = Note(information="labels", warmup=0, sparsify=1, recalibrate_batches=8)
    trainer(tmp_path, [callback], max_epochs=2).fit(module, **loaders())
    total, within = got["total"][got["first"]], got["within"][got["first"]]
    assert bool((got["within"] <= got["total"] + 1e-6).all())
    assert bool((got["within"] >= 0).all())
    assert total[1] == pytest.approx(0, abs=1e-6)  # a silent channel tells nothing
    assert total[0] > within[0]


def test_labels_are_asked_for_by_name(tmp_path: Path) -> Any:
    class Pairs(MRTSCallback):
        def calibration_forward(self, module: Any, batch: Any) -> Any:
            return module(batch[0]), None

    callback = Pairs(information="labels", warmup=0, sparsify=2)
    with pytest.raises(ValueError, match="information='labels' needs class labels"):
        trainer(tmp_path, [callback]).fit(Toy(), **loaders())


def test_signs_are_kept_and_none_is_crossed(tmp_path: Path) -> None:
    module = Still("sgd")
    module.net[1].weight.data[:4] *= -1
    signs = module.net[1].weight.detach().sign()

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if callback.stage == "soft":
                assert bool((pl_module.net[1].weight.detach() * signs >= 0).all())

    callback = MRTSCallback(warmup=0, sparsify=2, travel=5.0)
    trainer(tmp_path, [callback, Watch()]).fit(module, **loaders())
    assert callback.stage == "pruned"


def test_two_settings_of_the_same_parts() -> None:
    """MR alone, TS alone, both and none: the paper's ablation is the choice of a penalty and of a rule."""
    both, mr = MRTSCallback(), MRTSCallback(rule="global")
    ts, none = NetworkSlimmingCallback(rule="mass"), NetworkSlimmingCallback()
    settings = [(c.estimate() is not None, c.rule) for c in (none, mr, ts, both)]
    assert settings == [(False, "global"), (True, "global"), (False, "mass"), (True, "mass")]
