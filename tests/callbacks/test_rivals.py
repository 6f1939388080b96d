"""STR, ST-3 and gradual Taylor pruning: the core of the promises, and what is their own."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from lightning_prune import LTPCallback, ST3Callback, STRCallback, TaylorWeightCallback
from lightning_prune.callbacks.step import Step
from lightning_prune.masks import find_targets
from lightning_prune.masks.ltp import KEPT
from lightning_prune.masks.units import WeightUnits
from tests.callbacks import test_behaviours as promises
from tests.callbacks import test_behaviours_checkpoints as checkpoints
from tests.callbacks.methods import RIVALS, N, fit
from tests.toy import Toy, loaders, samples, trainer, zeros


@pytest.fixture(params=RIVALS)
def rival(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_budget(rival: str, tmp_path: Path) -> None:
    promises.test_the_budget_is_met_and_stays_met_through_finetune(rival, tmp_path)


def test_resume(rival: str, tmp_path: Path) -> None:
    checkpoints.check_resume(tmp_path, rival, "adamw", (9, 24, 33))


def test_evaluation_of_a_soft_checkpoint(rival: str, tmp_path: Path) -> None:
    checkpoints.test_evaluation_of_a_soft_checkpoint_sees_what_training_saw(rival, tmp_path)


def test_checkpoints_are_plain(rival: str, tmp_path: Path) -> None:
    checkpoints.test_checkpoints_are_plain_in_every_phase(rival, tmp_path)


def test_layers_keep_their_floor_at_a_target_that_nearly_empties_them(rival: str, tmp_path: Path) -> None:
    options = {"target_sparsity": 0.9, "min_keep": 0.08, "warmup": 0}
    module, callback, _ = fit(tmp_path, RIVALS[rival], options=options)
    assert abs(zeros(module) - 0.9 * N) <= 1
    pairs = zip(callback.units.targets, callback.units.floors, strict=True)
    assert all(int(torch.count_nonzero(t.param)) >= floor for t, floor in pairs)


class AtPrune(lightning.Callback):
    """What the network says before the hard prune and after it, in eval mode, and what an average of it does."""

    def __init__(self) -> None:
        self.said: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        stage = trainer.callbacks[1].stage
        if stage == "soft" or "pruned" not in self.said:
            was = pl_module.training
            self.said[stage] = pl_module.eval()(samples(16, seed=1).tensors[0])
            pl_module.train(was)


@pytest.mark.parametrize("method", [STRCallback, ST3Callback, LTPCallback])
def test_the_pruned_network_computes_what_the_soft_one_did(method: Any, tmp_path: Path) -> None:
    """A callback before ours and one after it see the same output around the prune of the phase's last batch."""

    class Own(method):  # type: ignore[misc]
        """Where the last batch's thresholds cut: no common factor, so nothing but the fold stands between them."""

        def final_masks(self, score: Tensor, early: bool) -> list[Tensor]:
            pairs = zip(self.units.weights(), self.thresholds(), strict=True)
            return [w.square() > tau for w, tau in pairs]

    before, after = AtPrune(), AtPrune()
    callback = Own(target_sparsity=0.6, warmup=1, sparsify=3, recalibrate_batches=0)
    fit_ = trainer(tmp_path, [before, callback, after], max_epochs=4, limit_val_batches=0)
    fit_.fit(Toy(), loaders()["train_dataloaders"])
    assert not torch.equal(before.said["dense"], before.said["soft"])
    torch.testing.assert_close(after.said["pruned"], before.said["soft"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [STRCallback, ST3Callback, LTPCallback])
def test_averaged_copies_are_folded_as_the_weights_are(method: Any, tmp_path: Path) -> None:
    """An average that follows at once holds the shrunk weights too; one that was left alone would hold the others."""
    ema = EMAWeightAveraging(decay=0.01)
    seen: list[tuple[Tensor, Tensor]] = []

    class Look(method):  # type: ignore[misc]
        def remove(self, *args: Any) -> bool:
            done = super().remove(*args)
            averages = dict(ema._average_model.module.named_parameters())
            seen.extend((t.param.detach().clone(), averages[t.name].detach().clone()) for t in self.units.targets)
            return bool(done)

    # Ours comes after, so the average has followed the raw weights of the last step.
    fit_ = trainer(tmp_path, [ema, Look(target_sparsity=0.8, warmup=1, sparsify=3)], max_epochs=4)
    fit_.fit(Toy(), **loaders())
    assert len(seen) == 3
    for w, average in seen:
        assert torch.equal(w == 0, average == 0)
        assert (w - average).norm() < 0.05 * w.norm()


def test_without_a_target_the_pull_decides(tmp_path: Path) -> None:
    left = []
    for lam in (1e-3, 0.3, 3.0):
        module = Toy()
        callback = STRCallback(lam=lam, sparsify=0.7)
        trainer(tmp_path, [callback], max_epochs=12, limit_val_batches=0).fit(module, loaders()["train_dataloaders"])
        left.append(zeros(module))
    assert left == sorted(left)
    assert left[-1] > left[0] + 100


def test_the_kept_share_tracks_its_path(tmp_path: Path) -> None:
    gaps = []

    class Track(STRCallback):
        def learn(self, stats: Tensor, active: Tensor) -> None:
            super().learn(stats, active)
            if self.progress > 0.5:
                gaps.append(abs(float(stats[:, KEPT].sum()) / N - self._goal()))

    run_ = trainer(tmp_path, [Track(target_sparsity=0.8, sparsify=0.7)], max_epochs=16, limit_val_batches=0)
    run_.fit(Toy(), loaders()["train_dataloaders"])
    assert sum(gaps) / len(gaps) < 0.05


def test_thresholds_go_up_by_the_pull_and_down_by_the_loss() -> None:
    """Of two equal layers, the one whose loss pays for what it loses keeps the lower threshold."""
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    with torch.no_grad():
        for layer in network:
            layer.weight.copy_(torch.randn(8, 8, generator=generator))
    callback = STRCallback(lam=0.1)
    units = units_of(network)
    callback.units = units
    callback.start(units)
    stats = torch.zeros(2, 5, dtype=torch.float64)
    stats[0, 0] = -100.0  # dL/dα = 100: the loss grows as the threshold does
    first = callback.thresholds().clone()
    for _ in range(10):
        callback.learn(stats, torch.tensor([True, True]))
    now = callback.thresholds()
    assert now[0] < first[0]
    assert now[1] > first[1]


def units_of(network: torch.nn.Module) -> WeightUnits:
    targets = find_targets(network)[0]
    return WeightUnits(tuple(targets), tuple(1 for _ in targets))


def test_the_taylor_score_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    """Of the gradients that the optimizer sees, accumulated; against autograd on copies of the weights."""
    grads: list[dict[str, Tensor]] = []

    class Note(TaylorWeightCallback):
        def before_step(self, units: WeightUnits, step: Step) -> None:
            if len(grads) < 3:
                grads.append({t.name: (t.param * t.param.grad).abs() for t in units.targets})
            super().before_step(units, step)
            if len(grads) == 3 and not hasattr(self, "third"):
                self.third = {n: m.clone() for n, m in zip(units.names, units.split(self._mean), strict=True)}

    _, callback, _ = fit(tmp_path, Note, options={"target_sparsity": 0.5, "warmup": 0}, accumulate_grad_batches=2)
    for name, mean in callback.third.items():
        torch.testing.assert_close(mean, torch.stack([g[name] for g in grads]).mean(0))


@pytest.mark.parametrize("feedback", [0.0, 1.0])
def test_taylor_weights_come_back_with_feedback_alone(feedback: float, tmp_path: Path) -> None:
    masks: list[Tensor] = []

    class Watch(TaylorWeightCallback):
        def after_step(self, units: WeightUnits, step: Step) -> None:
            masks.append(self._mask.clone())

    fit(tmp_path, Watch, options={"target_sparsity": 0.8, "warmup": 0, "sparsify": 5, "feedback": feedback})
    back = sum(int((now & ~before).sum()) for before, now in pairwise(masks))
    assert (back > 0) is (feedback > 0)
    kept = [int(m.sum()) for m in masks]
    assert kept == sorted(kept, reverse=True)


def test_taylor_survives_an_overflow() -> None:
    """A gradient that is not finite leaves score and count as they are."""
    network = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    callback, units = TaylorWeightCallback(target_sparsity=0.5), units_of(network)
    callback.units = units
    callback.start(units)
    callback.gates(units)
    step = Step(torch.optim.SGD(network.parameters(), lr=0.1))
    network[0].weight.grad = torch.ones(4, 4)
    callback.before_step(units, step)
    before = copy.deepcopy(callback.tensors())
    network[0].weight.grad = torch.full((4, 4), torch.inf)
    callback.before_step(units, step)
    for name in ("mean", "counts"):
        assert torch.equal(callback.tensors()[name], before[name])
    assert torch.equal(callback.tensors()["mean"], network[0].weight.detach().abs().flatten())


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"lam=-1 must not be negative"):
        STRCallback(lam=-1)
    with pytest.raises(ValueError, match=r"threshold_lr=0 must be positive"):
        STRCallback(threshold_lr=0)
    for method in RIVALS.values():
        with pytest.raises(ValueError, match=r"feedback=2 must be in \[0, 1\]"):
            method(feedback=2)
        assert method().target_sparsity == 0.9
        assert method(target_compression=4).target_sparsity == 0.75
