"""`ScorePruningCallback` with every score and every scope: budget, removal, resume bit for bit, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from lightning_prune import (
    ChannelError,
    ChannelUnits,
    FPGMCallback,
    ScorePruningCallback,
    SoftFilterPruningCallback,
    plan_of,
)
from lightning_prune.callbacks.methods.channels.soft_filter import slowed
from lightning_prune.errors import CalibrationError, DivergenceError, PhaseError
from lightning_prune.scores import score_names
from lightning_prune.scores.taylor import Taylor
from tests.callbacks.methods import check_budget, equal, fit, keep_all, size
from tests.callbacks.test_second_fit import Diverges
from tests.toy import Toy, loaders

ELSEWHERE = ("fpgm", "taylor", "l1")  # through the whole table of tests/callbacks/methods.py; l1 is as l2
OTHERS = [name for name in score_names() if name not in ELSEWHERE]
SHORT: dict[str, Any] = {"max_epochs": 3, "limit_val_batches": 0}
PHASES: dict[str, Any] = {"warmup": 1, "sparsify": "4 steps", "score_batches": 3}


def run(path: Path, module: Toy | None = None, ckpt_path: Any = None, callbacks: Any = (), **options: Any) -> Any:
    make, given = ScorePruningCallback, PHASES | options
    return fit(path, make, module or Toy(), options=given, ckpt_path=ckpt_path, callbacks=callbacks, **SHORT)


@pytest.mark.parametrize("score", OTHERS)
def test_the_budget_is_met_and_resumed_equals_uninterrupted(score: str, tmp_path: Path) -> None:
    module, callback, _ = run(tmp_path / "whole", callbacks=[keep_all(tmp_path, 5)], score=score)
    check_budget("fpgm", module)
    assert callback.stage == "pruned"
    assert callback.pruned.proof.equal
    path = tmp_path / "step=10.ckpt"  # two batches before the removal
    states = torch.load(path, weights_only=True)["callbacks"].values()
    assert [s["stage"] for s in states if "stage" in s] == ["soft"]
    again, resumed, _ = run(tmp_path / "again", ckpt_path=path, score=score)
    assert equal(module, again)
    assert resumed.numbers == callback.numbers


@pytest.mark.parametrize("scope", ["layer", "isomorphic"])
def test_scopes(scope: Any, tmp_path: Path) -> None:
    """The two convolutions of the toy differ: one is read by a convolution, one by a linear layer."""
    _, callback, _ = run(tmp_path, score="l2", scope=scope, target_channels=0.5)
    assert [kept / size for kept, size in callback.selection.kept] == [0.5, 0.5]
    scores = callback.selection.score
    assert float(scores[scores < torch.inf].max()) < 1


def test_fpgm_is_a_score(tmp_path: Path) -> None:
    one, _, _ = fit(tmp_path, FPGMCallback, options={"warmup": 1, "sparsify": 0}, **SHORT)
    two, _, _ = fit(tmp_path, ScorePruningCallback, options={"warmup": 1, "sparsify": 0, "score": "fpgm"}, **SHORT)
    assert equal(one, two)


@pytest.mark.parametrize("form", ["weights", "scale"])
@pytest.mark.parametrize("steps", [1, 2])
def test_reconstruction_refits_what_reads_and_resumes(form: Any, steps: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"score": "thinet", "reconstruct": form, "steps": steps}
    module, _, _ = run(tmp_path / "whole", callbacks=[keep_all(tmp_path, 5)], **options)
    check_budget("fpgm", module)
    again, _, _ = run(tmp_path / "again", ckpt_path=tmp_path / "step=10.ckpt", **options)
    assert equal(module, again)
    plain, _, _ = run(tmp_path / "plain", **(options | {"reconstruct": None}))
    assert size(plain) == size(module)
    assert not equal(plain, module)


class ZeroFilters(lightning.Callback):
    """Counts filters that are zero when a batch begins, behind the pruning callback, and when it ends."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def count(self, module: nn.Module) -> int:
        norms = [m.weight.detach().flatten(1).norm(dim=1) for m in module.modules() if isinstance(m, nn.Conv2d)]
        return int((torch.cat(norms) == 0).sum())

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before = self.count(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((self.before, self.count(pl_module)))


def test_soft_filter_pruning_lets_filters_grow_back(tmp_path: Path) -> None:
    zeros = ZeroFilters()
    options = {"warmup": 1, "sparsify": 3, "recalibrate_batches": 2, "target_channels": 0.5}
    module, callback, _ = fit(
        tmp_path / "whole", SoftFilterPruningCallback, options=options, callbacks=[zeros, keep_all(tmp_path, 5)]
    )
    before, after = zip(*zeros.seen, strict=True)
    assert before[:8] == (0,) * 8
    zeroed = [i for i in range(8, 32) if before[i] == 12]  # half of 8 + 16 filters
    assert len(zeroed) >= 8
    assert all(after[i] == 0 for i in zeroed)
    assert [kept / size for kept, size in callback.selection.kept] == [0.5, 0.5]
    again, _, _ = fit(
        tmp_path / "again", SoftFilterPruningCallback, options=options, ckpt_path=tmp_path / "step=20.ckpt"
    )
    assert equal(module, again)


class Growth(ZeroFilters):
    """The norms of filters, over the largest of their layer, a step after they were zero."""

    def count(self, module: nn.Module) -> Any:
        return [m.weight.detach().flatten(1).norm(dim=1) for m in module.modules() if isinstance(m, nn.Conv2d)]


def test_what_grows_back_is_not_the_largest_at_once(tmp_path: Path) -> None:
    growth = Growth()
    options = {"warmup": 1, "sparsify": 2, "target_channels": 0.5}
    fit(tmp_path, SoftFilterPruningCallback, Toy(optimizer="sgd"), options=options, callbacks=[growth])
    pairs = [(old, new) for before, after in growth.seen for old, new in zip(before, after, strict=True)]
    grown = [float(new[old == 0].max() / new[old > 0].max()) for old, new in pairs if bool((old == 0).any())]
    assert len(grown) > 8
    assert 0 < min(grown) <= max(grown) < 1


def test_gradients_of_zero_filters_are_limited() -> None:
    weight, grad = torch.ones(4, 2, 1, 1), torch.tensor([3.0, 4.0]).repeat(4, 1).view(4, 2, 1, 1)
    weight[2], grad[2] = 0.0, 100 * grad[2]
    assert slowed(weight, grad).flatten().tolist() == pytest.approx([1, 1, 0.01, 1])
    assert slowed(torch.zeros_like(weight), grad).flatten().tolist() == [1] * 4


def first_filters(units: ChannelUnits) -> torch.Tensor:
    return torch.arange(units.size, 0.0, -1.0).masked_fill(~units.free, torch.inf)


def test_a_function_is_a_score(tmp_path: Path) -> None:
    _, callback, _ = run(tmp_path, score=first_filters, target_channels=0.5)
    assert callback.pruned.keep.tolist() == [True] * 12 + [False] * 12


class Regression(Toy):
    """Learns a number from each image; its loss is its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)[:, 0]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.huber_loss(self(batch[0]), batch[1].float())


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    module = Regression()
    with pytest.raises(ValueError, match=r"no loss is known for an output of \(8,\) and labels of \(8,\)"):
        run(tmp_path, module, score="taylor")
    assert module.global_step == 0  # and not after the warm-up, where the score is needed
    own = Taylor(loss=lambda output, labels: nn.functional.huber_loss(output, labels.float()))
    _, callback, _ = run(tmp_path, Regression(), score=own)
    assert callback.stage == "pruned"
    assert float(callback.selection.score[callback.units.free].max()) > 0


@pytest.mark.parametrize("score", ["taylor", "hrank", "random"])
def test_a_training_that_has_diverged_is_told_as_such(score: str, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="The training has diverged: after 18 batches"):
        run(tmp_path, Diverges(), score=score, sparsify=2)


class LayerNorm(Toy):
    """Without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1] = self.net[4] = nn.Identity()


def test_what_a_score_needs_and_does_not_get_is_said(tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match=r"score='bn_scale' needs BatchNorm scale factors .* Sequential has none"):
        run(tmp_path, LayerNorm(), score="bn_scale")
    endless = {"train_dataloaders": iter(loaders()["train_dataloaders"])}  # cannot be read twice
    options = {"score": "variance", "warmup": 0, "sparsify": "2 steps"}
    with pytest.raises(CalibrationError, match="Variance needs activations on calibration batches and got none"):
        fit(tmp_path, ScorePruningCallback, data=endless, options=options, max_epochs=-1, max_steps=4)


def test_means_go_into_the_biases_at_the_removal(tmp_path: Path) -> None:
    """Each removed channel's mean is added where it was read: the mean output stays, that of a plain cut does not."""
    found = {}
    for means in (True, False):
        make: Any = ScorePruningCallback
        if not means:
            make = type("Plain", (ScorePruningCallback,), {"means": lambda self: {}})
        module, callback, _ = fit(
            tmp_path, make, options={"score": "variance", "warmup": 0, "sparsify": 0, "recalibrate_batches": 0},
            max_steps=1, max_epochs=-1, limit_val_batches=0,
        )  # fmt: skip
        found[means] = (module.net[-1].bias.detach(), callback.pruned.keep)
    assert torch.equal(found[True][1], found[False][1])
    assert not torch.allclose(found[True][0], found[False][0], atol=1e-3)


class Sizes(lightning.Callback):
    """Channels of the second convolution at the end of each batch, and how often callbacks were told of new shapes."""

    def __init__(self) -> None:
        self.channels: list[int] = []
        self.told = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.channels.append(pl_module.net[3].out_channels)

    def on_channels_removed(self, trainer: Any, pl_module: Any, plan: Any) -> None:
        self.told += 1


STEPS: dict[str, Any] = {"steps": 3, "warmup": 1, "sparsify": "8 steps", "score": "taylor", "target_params": 0.4}


def test_channels_go_in_several_removals(tmp_path: Path) -> None:
    sizes = Sizes()
    module, callback, done = fit(tmp_path, ScorePruningCallback, callbacks=[sizes], options=STEPS, max_epochs=4)
    left = size(module) / size(Toy())
    assert 0.35 <= left <= 0.4
    assert callback.numbers["params"] == pytest.approx(left)
    assert done.callback_metrics["prune/params"].item() == pytest.approx(left)
    assert sizes.told == 3
    first, second, third = (sizes.channels[at] for at in (8, 12, 16))  # at the start, in the middle, at the end
    assert sizes.channels == [16] * 8 + [first] * 4 + [second] * 4 + [third] * 16
    assert 16 > first > second > third == module.net[3].out_channels
    plan = plan_of(module)
    assert plan is not None
    again = Toy()
    plan.apply(again)  # all removals are one plan
    assert [p.shape for p in again.parameters()] == [p.shape for p in module.parameters()]


def test_resumed_between_removals_equals_uninterrupted(tmp_path: Path) -> None:
    def go(path: Path, **options: Any) -> Any:
        return fit(path, ScorePruningCallback, Toy(optimizer="adamw"), options=STEPS, max_epochs=3, **options)

    module, callback, _ = go(tmp_path / "whole", callbacks=[keep_all(tmp_path, 2)])
    for step in (8, 12, 14):
        again, resumed, _ = go(tmp_path / "again", ckpt_path=tmp_path / f"step={step}.ckpt")
        assert equal(module, again), step
        assert resumed.numbers == callback.numbers
        assert plan_of(again) == plan_of(module)


def test_an_early_end_removes_down_to_the_target(tmp_path: Path) -> None:
    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    options = STEPS | {"sparsify": 2}
    with pytest.warns(UserWarning, match="ended in the sparsify phase"):
        module, _, _ = fit(tmp_path, ScorePruningCallback, callbacks=[Stop()], options=options, max_epochs=4)
    assert 0.35 <= size(module) / size(Toy()) <= 0.4


def test_several_removals_need_their_time(tmp_path: Path) -> None:
    for batches in (0, 1):
        with pytest.raises(PhaseError, match=f"steps=3 removals need a sparsify phase of 2 .* found {batches}"):
            fit(tmp_path, ScorePruningCallback, options=STEPS | {"sparsify": f"{batches} steps"}, max_epochs=4)
    for options in ({"target_latency": 0.5}, {"latency_batch": 1}, {"after": "retrain"}):
        (name,) = options
        with pytest.raises(ValueError, match=f"steps=2 and {name}=.* do not go together"):
            ScorePruningCallback(steps=2, **options)  # type: ignore[arg-type]
    module, _, _ = fit(tmp_path, ScorePruningCallback, options=STEPS, fast_dev_run=2)  # has no time, and does it all
    assert size(module) <= 0.4 * size(Toy())
