"""A target of sparse MACs: what a weight costs, the budget met to one weight, resume, and what cannot be met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune import LTPCallback
from lightning_prune.callbacks.families.target import Costs, WeightTarget
from lightning_prune.errors import BudgetError, CalibrationError
from lightning_prune.masks import find_targets
from lightning_prune.masks.units import WeightUnits
from tests.callbacks import test_behaviours as promises
from tests.callbacks import test_behaviours_checkpoints as checkpoints
from tests.callbacks.methods import METHODS, PHASES, SPARSE, fit, macs, sparse_macs
from tests.toy import Toy, loaders, network, trainer

NAME = "ltp macs"


def test_budget(tmp_path: Path) -> None:
    promises.test_the_budget_is_met_and_stays_met_through_finetune(NAME, tmp_path)


def test_resume(tmp_path: Path) -> None:
    checkpoints.check_resume(tmp_path, NAME, "adamw", (9, 24, 33))


def test_two_layers_in_closed_form() -> None:
    """100 weights that cost 9 each, 200 that cost 1, and 300 MACs of what is not pruned: 1400 in all."""
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 20))
    targets = tuple(find_targets(net)[0])
    target = WeightTarget(None, None, macs=0.5)
    target.costs = Costs(1400, {"0.weight": 900, "1.weight": 200})
    units = WeightUnits(targets, (1, 2), prices=target.prices(targets))
    assert units.prices == (9.0, 1.0)
    assert target.share(units) == pytest.approx((700 - 300) / 1100)
    score = torch.arange(300, 0, -1.0)  # the whole first layer before the second
    masks = units.best(score, target.share(units))
    kept = [int(m.sum()) for m in masks]
    assert kept == [44, 2]  # the floor of the second layer, and 44 · 9 + 2 ≤ 400 < 45 · 9 + 2
    assert target.sparse_macs(units, [56, 198]) == pytest.approx((300 + 398) / 1400)
    with pytest.raises(
        ValueError, match=r"target_macs=0.5, and the checkpoint is one of a pruning to a share of weights"
    ):
        target.restore({"stage": "soft"})
    kept = [int(m.sum()) for m in units.best(-score, target.share(units))]
    assert kept == [22, 200]
    target.macs = 0.2
    with pytest.raises(BudgetError, match=r"target_macs=0.2 .* what is not pruned takes 21.43% alone"):
        target.share(units)


def test_any_score_is_cut_where_the_macs_are_spent(tmp_path: Path) -> None:
    logged: list[float] = []

    class Noting(METHODS["toy score"]):  # type: ignore[misc]
        def log_step(self, trainer: Any, pl_module: Any) -> None:
            super().log_step(trainer, pl_module)
            logged.append(float(trainer.logged_metrics.get("prune/sparse_macs", torch.nan)))

    options = {"target_macs": 0.3, "exclude": ["net.8.*"], "min_keep": 0.3}
    with pytest.raises(BudgetError, match=r"MACs, but min_keep per layer alone keeps .*net.3.weight \(346 of 1152\)"):
        fit(tmp_path, Noting, options=options)
    module, _, _ = fit(tmp_path, Noting, options=options | {"min_keep": 0.01})
    left, step = sparse_macs(module.net)
    assert 0.3 * macs(network()) - step < left <= 0.3 * macs(network())
    assert logged[-1] == pytest.approx(left / macs(network()))


@pytest.mark.parametrize("name", ["magnitude", "st3", "taylor weights"])
def test_a_gradual_score_follows_the_path_in_macs(name: str, tmp_path: Path) -> None:
    soft: list[float] = []

    class Noting(METHODS[name]):  # type: ignore[misc]
        """What the mask keeps before the last cut."""

        def final_masks(self, score: torch.Tensor, early: bool) -> list[torch.Tensor]:
            kept = [t.numel - zeros for t, zeros in zip(self.units.targets, self.layer_zeros(), strict=True)]
            soft.append(float(self.units.share(torch.tensor(kept, dtype=torch.float64))))
            return super().final_masks(score, early)

    module, _, _ = fit(tmp_path, Noting, options={"target_macs": SPARSE}, max_epochs=4)
    left, step = sparse_macs(module.net)
    assert SPARSE * macs(network()) - step < left <= SPARSE * macs(network())
    assert soft == [pytest.approx(SPARSE, rel=0.05)]


def test_a_weight_is_priced_by_its_macs(tmp_path: Path) -> None:
    """In mode "paper" each step of τ is −η·(dL/dτ + λ·c·Σ s), c the layer's MACs a weight next to the mean of all."""
    lam, lr = 1e-3, 1e-5
    steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    class Spy(LTPCallback):
        def learn(self, stats: torch.Tensor, active: torch.Tensor) -> None:
            before = self.thresholds().clone()
            super().learn(stats, active)
            steps.append((before, stats.clone(), self.thresholds().clone()))

    callback = Spy(mode="paper", lam=lam, threshold_lr=lr, target_macs=0.5, sparsify=1.0)
    trainer(tmp_path, [callback], max_epochs=1).fit(Toy(), **loaders())
    uses = torch.tensor([64.0, 9.0, 1.0])  # positions of the two maps, and of the head
    numels = torch.tensor([72.0, 1152.0, 64.0])
    price = uses * numels.sum() / (uses * numels).sum()
    for before, stats, after in steps:
        expected = (before + lr * (stats[:, 0] + lam * price * stats[:, 1]).float()).clamp_min(0)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-12)
    assert len(steps) == 8


class Aside(Toy):
    """With a layer that eval mode does without, and a forward that may be for nobody."""

    def __init__(self, called: bool = True) -> None:
        super().__init__()
        self.aside, self.called = nn.Linear(4, 4), called

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.called:
            raise ValueError("call the network itself")
        logits = self.net(x)
        return self.aside(logits) if self.training else logits


def test_what_cannot_be_counted_is_refused_before_the_first_step(tmp_path: Path) -> None:
    module = Aside()
    with pytest.raises(BudgetError, match=r"aside.weight does no MACs .* eval mode.* exclude them"):
        fit(tmp_path, METHODS[NAME], module, options={"target_macs": 0.2})
    fit(tmp_path, METHODS[NAME], Aside(), options={"target_macs": 0.2, "exclude": ["aside"]}, max_epochs=4)
    with pytest.raises(
        CalibrationError, match=r"counts the MACs .* call the network itself.*calibration_forward.*or give"
    ):
        fit(tmp_path, METHODS[NAME], Aside(called=False), options={"target_macs": 0.2}, limit_val_batches=0)
    with pytest.raises(ValueError, match=r"target_macs=0.2 and a target of zeros .* give one"):
        LTPCallback(target_macs=0.2, target_sparsity=0.9, **PHASES)
    with pytest.raises(ValueError, match=r"target_macs=1.5 is the share that may be left, in \(0, 1\)"):
        LTPCallback(target_macs=1.5)
