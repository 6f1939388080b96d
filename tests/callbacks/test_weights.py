"""What the family that zeroes weights promises: which weights go, and how many of each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from lightning_prune import LTPCallback, PrunedFileError, save_pruned, sparsity_report
from lightning_prune.masks import find_targets
from tests.callbacks.methods import WEIGHTS, Make, N, equal, fit
from tests.callbacks.test_behaviours_left_behind import Tied
from tests.callbacks.toys import WeightScore
from tests.toy import Toy, loaders, network, ours_left_on, trainer, zeros


@pytest.fixture(params=WEIGHTS)
def make(request: pytest.FixtureRequest) -> Make:
    return WEIGHTS[request.param]


@pytest.mark.parametrize("target", [0.0, 0.5, 0.95])
def test_every_target_is_met_to_the_weight(make: Make, target: float, tmp_path: Path) -> None:
    module, callback, _ = fit(tmp_path, make, options={"target_sparsity": target, "warmup": 0})
    assert callback.stage == "pruned"
    assert abs(zeros(module) - target * N) <= 1
    assert sparsity_report(module).zeros == zeros(module)


def test_compression_target(make: Make, tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path, make, options={"target_compression": 4})
    assert sparsity_report(module).compression == pytest.approx(4, rel=1e-2)


def test_tied_and_shared_weights_count_once(make: Make, tmp_path: Path) -> None:
    module, callback, _ = fit(tmp_path, make, Tied(), options={"target_sparsity": 0.5})
    assert [t.name for t in callback.units.targets] == [f"net.{i}.weight" for i in (0, 3, 6, 11, 13)]
    total = sum(t.numel for t in callback.units.targets)
    assert abs(sparsity_report(module).zeros - total / 2) <= 1
    assert sparsity_report(module).prunable == total


class Attention(Toy):
    """torch's MultiheadAttention keeps its projections outside any Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict(
            {"embed": nn.Linear(8, 16), "mix": nn.MultiheadAttention(16, 2, batch_first=True), "head": nn.Linear(16, 4)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.net["embed"](x[:, 0])
        return self.net["head"](self.net["mix"](tokens, tokens, tokens)[0].mean(1))


def test_attention_projections_are_pruned(make: Make, tmp_path: Path) -> None:
    module, callback, _ = fit(tmp_path, make, Attention(), options={"target_sparsity": 0.75})
    assert "net.mix.in_proj_weight" in [t.name for t in callback.units.targets]
    total = sum(t.numel for t in callback.units.targets)
    pruned = sum(t.numel - int(torch.count_nonzero(t.param)) for t in callback.units.targets)
    assert abs(pruned - 0.75 * total) <= 1
    assert sparsity_report(module).zeros == pruned


def test_include_and_exclude_leave_the_rest_dense(make: Make, tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path, make, options={"exclude": ["net.8"], "skip_first": True})
    report = {layer.name: layer.sparsity for layer in sparsity_report(module).layers}
    assert report["net.0.weight"] == report["net.8.weight"] == 0
    assert report["net.3.weight"] == pytest.approx(0.9, abs=1e-3)


def test_min_keep_holds_in_every_layer(make: Make, tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path, make, options={"target_sparsity": 0.9, "min_keep": 0.08})
    assert all(layer.sparsity <= 0.92 + 1 / layer.numel for layer in sparsity_report(module).layers)


def test_saving_in_the_sparsify_phase_is_refused(make: Make, tmp_path: Path) -> None:
    class Save(lightning.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if ours_left_on(pl_module):
                save_pruned(pl_module.net, tmp_path / "early.safetensors")

    with pytest.raises(PrunedFileError, match=r"zeros are not in the weights yet.*Save it after fit"):
        fit(tmp_path, make, callbacks=[Save()])
    assert not (tmp_path / "early.safetensors").exists()


def test_a_checkpoint_of_weights_alone_keeps_the_zeros(make: Make, tmp_path: Path) -> None:
    """``weights_only`` drops the callback's state; zeros are in the weights all the same."""
    module, _, run = fit(tmp_path, make)
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    other = Toy()
    other.load_state_dict(torch.load(tmp_path / "weights.ckpt", weights_only=True)["state_dict"])
    assert zeros(other) == zeros(module) > 0
    assert equal(other, module)


def test_which_weights_are_prunable() -> None:
    def names(**patterns: Any) -> list[str]:
        return [t.name for t in find_targets(network(), **patterns)[0]]

    assert names(include=["0", "8.weight"]) == ["0.weight", "8.weight"]
    assert names(exclude=["[03]"]) == ["8.weight"]
    assert names(skip_first=True, skip_last=True) == ["3.weight"]


def test_timm_stem_and_classifier_are_known() -> None:
    import timm

    model = timm.create_model("test_efficientnet")
    everything = [t.name for t in find_targets(model)[0]]
    inner = [t.name for t in find_targets(model, skip_first=True, skip_last=True)[0]]
    assert set(everything) - set(inner) == {"conv_stem.weight", "classifier.weight"}


def test_what_cannot_be_pruned_is_listed_with_its_reason() -> None:
    net = network()
    net[0].requires_grad_(False)
    nn.utils.parametrizations.weight_norm(net[3])
    targets, skipped = find_targets(net)
    assert [t.name for t in targets] == ["8.weight"]
    reasons = dict(skipped)
    assert "frozen" in reasons["0.weight"]
    assert "parametrization" in reasons["3.weight"]


class Nothing(Toy):
    """No layer with a weight of two dims."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))


def test_a_model_with_nothing_to_prune_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Nothing has no conv or linear weight"):
        fit(tmp_path, LTPCallback, Nothing())
    with pytest.raises(ValueError, match=r"all 3 weights were left out .*frozen"):
        find_targets(network().requires_grad_(False))


def test_a_method_that_only_scores_asks_for_its_target_before_it_trains(tmp_path: Path) -> None:
    callback = WeightScore()
    with pytest.raises(ValueError, match=r"WeightScore has neither target_sparsity nor target_compression.*=0\.9"):
        trainer(tmp_path, [callback]).fit(Toy(), **loaders())
    assert callback.seen == 0


def test_a_validation_of_the_sparsify_phase_measures_no_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It re-estimates statistics; the accuracy on calibration batches belongs to the removal alone."""
    from lightning_prune.callbacks import calibrate

    calls: list[int] = []
    original = calibrate.accuracy
    monkeypatch.setattr(calibrate, "accuracy", lambda *args: calls.append(1) or original(*args))
    trainer(tmp_path, [LTPCallback(sparsify=3)]).fit(Toy(), **loaders())
    assert len(calls) == 2  # before the removal and after it
