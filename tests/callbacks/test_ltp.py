"""What is LTP's own: thresholds, the price, the paper's raw mode, the temperature, and what it warns of."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from lightning_prune import LTPCallback
from lightning_prune.functional import ltp
from lightning_prune.functional.schedules import cubic_path
from tests.callbacks.methods import N, fit
from tests.ltp_equations import soft_l0
from tests.toy import Toy, loaders, ours_left_on, trainer, zeros


def test_without_a_target_the_price_decides(tmp_path: Path) -> None:
    left = []
    for lam in (0.01, 0.3, 10.0):
        module = Toy()
        callback = LTPCallback(lam=lam, sparsify=0.7)
        trainer(tmp_path, [callback], max_epochs=20, limit_val_batches=0).fit(module, loaders()["train_dataloaders"])
        left.append(zeros(module))
    assert left == sorted(left)
    assert left[-1] > left[0] + 100


def test_paper_mode_is_plain_gradient_descent_on_raw_thresholds(tmp_path: Path) -> None:
    """Each step of τ is exactly −η·dL/dτ at a constant T0·Var|w|, with λ as given."""
    lam, lr, t0 = 1e-3, 1e-5, 1e-2
    steps = []

    class Spy(LTPCallback):
        def learn(self, stats: torch.Tensor, active: torch.Tensor) -> None:
            before = self.thresholds().clone()
            slope, variance = self._slope.clone(), self._variance.clone()
            super().learn(stats, active)
            steps.append((before, slope, variance, stats.clone(), self.thresholds().clone()))

    weights: dict[str, list[torch.Tensor]] = {}

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            weights.setdefault("first", [t.param.detach().clone() for t in callback.units.targets])

    callback = Spy(mode="paper", lam=lam, threshold_lr=lr, temperature=t0, sparsify=0.5)
    trainer(tmp_path, [callback, Watch()], max_epochs=2).fit(Toy(), **loaders())
    before, slope, _, stats, _ = steps[0]
    assert torch.equal(before, torch.zeros(3))
    for i, w in enumerate(weights["first"]):
        variance = ltp.variance_of_magnitude(w.numel(), w.abs().sum(), w.square().sum())
        assert slope[i].item() == pytest.approx(1 / (t0 * variance.item()), rel=1e-4)
        kept = soft_l0(w, 0.0, t0 * variance).item()
        assert stats[i, 2].item() == pytest.approx(kept, rel=1e-4)
    for before, _, _, stats, after in steps:
        expected = (before + lr * (stats[:, 0] + lam * stats[:, 1]).float()).clamp_min(0)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-12)
    for _, slope, variance, _, _ in steps:
        torch.testing.assert_close(1 / (slope * variance), torch.full((3,), t0))
    assert len(steps) == 8


@pytest.mark.parametrize("schedule", ["exponential", "cosine"])
def test_temperature_is_a_function_of_progress(schedule: Any, tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Spy(LTPCallback):
        def learn(self, stats: torch.Tensor, active: torch.Tensor) -> None:
            super().learn(stats, active)
            seen.append((self.progress, self._t0()))

    callback = Spy(temperature_start=0.1, temperature=0.001, temperature_schedule=schedule, sparsify=1.0)
    trainer(tmp_path, [callback], max_epochs=3).fit(Toy(), **loaders())
    temperatures = [t for _, t in seen]
    assert temperatures[0] == pytest.approx(0.1)
    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures[-1] < 0.0015
    middle = min(seen, key=lambda x: abs(x[0] - 0.5))[1]
    assert middle == pytest.approx({"exponential": 0.01, "cosine": 0.0505}[schedule], rel=0.2)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_learned_thresholds_differ_and_the_kept_share_tracks_its_path(accumulate: int, tmp_path: Path) -> None:
    """The controller brings the soft network near the budget, so that the last common factor is small."""
    gaps = []

    class Track(LTPCallback):
        def learn(self, stats: torch.Tensor, active: torch.Tensor) -> None:
            super().learn(stats, active)
            if self.progress > 0.5:
                gaps.append(abs(float(self.metrics()["soft_kept"]) - cubic_path(self.progress, 0.2, hold=0.3)))

    callback = Track(target_sparsity=0.8, sparsify=0.7)
    trainer(tmp_path, [callback], max_epochs=40, accumulate_grad_batches=accumulate).fit(Toy(), **loaders())
    assert callback.final_thresholds is not None
    u = callback.final_thresholds / callback._scale
    assert u.max() / u.min() > 1.1
    assert sum(gaps) / len(gaps) < 0.05


@pytest.mark.parametrize(
    ("options", "normed", "form"),
    [
        ({}, True, "fading"),
        ({}, False, "held"),
        ({"gate": "held"}, True, "held"),
        ({"gate": "sigmoid"}, True, "step"),
        ({"gate": "sigmoid"}, False, "step"),
        ({"gate": "fading"}, False, "fading"),
        ({"lam": 0.1}, True, "step"),
        ({"mode": "paper", "lam": 1e-6, "threshold_lr": 1e-6}, True, "step"),
    ],
)
def test_weights_fade_and_keep_their_norm_where_no_batchnorm_makes_up_for_it(
    options: Any, normed: bool, form: str, tmp_path: Path
) -> None:
    module = Toy()
    if not normed:
        module.net = nn.Sequential(*(m for m in module.net if not isinstance(m, nn.BatchNorm2d)))
    callback = LTPCallback(sparsify=1, **options)
    trainer(tmp_path, [callback], max_epochs=2).fit(module, **loaders())
    assert callback.form == form
    assert callback.feedback == (0 if form != "step" or "mode" in options else 1)
    given = LTPCallback(sparsify=1, feedback=0.5, **options)
    trainer(tmp_path, [given], max_epochs=2).fit(module, **loaders())
    assert given.feedback == 0.5


def test_a_batchnorm_that_is_held_makes_up_for_nothing(tmp_path: Path) -> None:
    module = Toy().eval()
    callback = LTPCallback(sparsify=1)
    trainer(tmp_path, [callback], max_epochs=2).fit(module, **loaders())
    assert callback.form == "held"


def test_what_is_held_is_the_norm_of_each_layer_and_the_prune_keeps_it(tmp_path: Path) -> None:
    found: list[list[float]] = []

    class Measured(LTPCallback):
        def before_step(self, units: Any, step: Any) -> None:
            weights = [t.param.detach() for t in units.targets]
            masked = [self._gates[name](w) for name, w in zip(units.names, weights, strict=True)]
            found.append([float(v.norm() / w.norm()) for v, w in zip(masked, weights, strict=True)])
            self.norms = [float(w.norm()) for w in weights]
            super().before_step(units, step)

        def remove(self, *args: Any) -> bool:
            self.factors_at_prune = self._factor.tolist()
            removed = super().remove(*args)
            self.norms_after = [float(t.param.detach().norm()) for t in self.units.targets]
            return removed

    callback = Measured(target_sparsity=0.8, gate="held", sparsify=0.7)
    trainer(tmp_path, [callback], max_epochs=10).fit(Toy(), **loaders())
    assert torch.tensor(found[-20:]).sub(1).abs().max() < 0.03  # the factor is the last step's
    assert min(callback.factors_at_prune) > 1.2
    assert callback.norms_after == pytest.approx(callback.norms, rel=0.1)  # the budget cuts nearly as the gates do


@pytest.mark.parametrize("bad", [{"gate": "soft"}, {"gate": "fading", "lam": 1.0}, {"gate": "held", "lam": 1.0}])
def test_a_wrong_gate_is_named(bad: Any) -> None:
    with pytest.raises(ValueError, match=f"gate='{bad['gate']}' must be None, 'sigmoid' or, with a target"):
        LTPCallback(**bad)


@pytest.mark.parametrize("fails", [False, True])
def test_running_statistics_follow_faster_while_weights_fade(fails: bool, tmp_path: Path) -> None:
    """Or validation would see what layers put out ten steps ago; momenta come back, also where a fit fails."""
    module, seen, means = Toy(), {}, {}
    module.net[4].momentum = None
    callback = LTPCallback(warmup=1, sparsify=1)

    class Look(lightning.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen[callback.stage] = [module.net[1].momentum, module.net[4].momentum]
            means[callback.stage] = module.net[1].running_mean.clone()
            if fails and callback.stage == "soft":
                raise KeyError("on purpose")

    try:
        trainer(tmp_path, [callback, Look()], max_epochs=3).fit(module, **loaders())
    except KeyError:
        assert fails
    assert seen["dense"] == [0.1, None]
    assert seen["soft"] == [0.5, 0.5]
    assert fails or seen["pruned"] == [0.1, None]
    assert torch.equal(module.net[1].running_mean, means["dense"]) == fails  # of weights that are whole again
    assert [module.net[1].momentum, module.net[4].momentum] == [0.1, None]


def test_an_early_end_prunes_as_far_as_the_phase_has_come(tmp_path: Path) -> None:
    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    module = Toy()
    with pytest.warns(UserWarning, match="ended in the sparsify phase, at 33%"):
        trainer(tmp_path, [LTPCallback(sparsify=0.9), Stop()], max_epochs=10).fit(module, **loaders())
    assert 0 < zeros(module) < 0.9 * N
    assert not ours_left_on(module)


def test_masks_hold_one_copy_of_the_masked_weights_and_the_removal_none(tmp_path: Path) -> None:
    held: list[int] = []

    class Measured(LTPCallback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            held.append(self.buffered())
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

        def final_masks(self, score: torch.Tensor, early: bool) -> list[torch.Tensor]:
            assert self.buffered() == 0
            return super().final_masks(score, early)

        def buffered(self) -> int:
            gates: Any = self._gates.values()
            return sum(g._masked.numel() * g._masked.element_size() for g in gates if g._masked is not None)

    fit(tmp_path, Measured)
    assert max(held) == 4 * N
    assert held[-1] == 0


def test_compiled_masks_train_to_the_same_thresholds(tmp_path: Path) -> None:
    ends: list[tuple[torch.Tensor, int]] = []
    for fuse in (False, True):
        module, callback, _ = fit(tmp_path, LTPCallback, options={"target_sparsity": 0.8, "fuse": fuse})
        ends.append((callback.final_thresholds, zeros(module)))
    assert ends[0][1] == ends[1][1]
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-2, atol=1e-6)


class Stopped(LTPCallback):
    """Thresholds far above all weights."""

    def learn(self, stats: torch.Tensor, active: torch.Tensor) -> None:
        super().learn(stats, active)
        self._u.fill_(100.0)
        self._cool()


@pytest.mark.parametrize("options", [{"temperature": 1e-4}, {"weights_in_band": 4.0, "temperature_schedule": "cosine"}])
def test_options_of_a_temperature_are_not_ignored_silently(tmp_path: Path, options: dict[str, Any]) -> None:
    given = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
    with pytest.warns(UserWarning, match=f"{given}: not used, as weights fade. gate='sigmoid' has a temperature"):
        trainer(tmp_path, [LTPCallback(sparsify=1, **options)], max_epochs=1).fit(Toy(), **loaders())
    for unwarned in ({"gate": "sigmoid", **options}, {}):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not used.*")
            trainer(tmp_path, [LTPCallback(sparsify=1, **unwarned)], max_epochs=1).fit(Toy(), **loaders())


def test_a_vanishing_band_and_emptying_layers_are_warned_of(tmp_path: Path) -> None:
    empty = r"net.3.weight is about to empty: 0 of 1152 weights are left, its floor is 12"
    with (
        pytest.warns(UserWarning, match="thresholds have stopped moving. Raise the temperature"),
        pytest.warns(UserWarning, match=empty),
    ):
        trainer(tmp_path, [Stopped(lam=1.0, sparsify=3)]).fit(Toy(), **loaders())
