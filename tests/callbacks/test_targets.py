"""What the targets of channel pruning mean: all are shares left, met as measured, or the reason is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_prune import ChannelUnits, MRTSCallback, PlanError, TimmClassifier, load_pruned, save_pruned
from lightning_prune.channels.latency.kept import read_times
from lightning_prune.export.meter import METERS
from tests.callbacks.methods import CHANNELS, Make, equal, fit, macs, size
from tests.channels.latency.clocks import Counter
from tests.toy import Toy, network


@pytest.fixture(params=CHANNELS)
def make(request: pytest.FixtureRequest) -> Make:
    return CHANNELS[request.param]


def classifier() -> TimmClassifier:
    torch.manual_seed(0)
    return TimmClassifier("test_resnet", num_classes=4, in_chans=1)


@pytest.mark.parametrize(("resource", "share"), [("macs", 0.3), ("params", 0.8), ("channels", 0.3)])
def test_targets_and_logged_numbers_are_shares_that_are_left(
    make: Make, resource: str, share: float, tmp_path: Path
) -> None:
    asked: list[ChannelUnits] = []

    class Keeps(make):  # type: ignore[misc, valid-type]
        def selected(self, units: ChannelUnits, selection: Any) -> None:
            asked[:] = [units]
            super().selected(units, selection)

    module, callback, run = fit(
        tmp_path, Keeps, classifier(), options={f"target_{resource}": share, "min_keep": 0.0}, max_epochs=5
    )
    dense, shape = classifier().model, (1, 1, 8, 8)
    units, keep = asked[0], callback.pruned.keep
    members = units.members()
    left = {
        "macs": macs(module.model, shape) / macs(dense, shape),
        "params": size(module.model) / size(dense),
        "channels": float(members[keep].sum() / members.sum()),
    }
    for name, value in left.items():
        assert run.callback_metrics[f"prune/{name}"].item() == pytest.approx(value, abs=2e-3)
    assert 0.97 * share <= left[resource] <= share


def test_half_of_the_macs_is_the_default(make: Make, tmp_path: Path) -> None:
    module, _, _ = fit(tmp_path, make)
    assert 0.375 <= macs(module.net) / macs(network()) <= 0.5


def test_a_budget_out_of_reach_names_the_layers(make: Make, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"target_macs=0.01 cannot be met: .*Raise the target"):
        fit(tmp_path, make, options={"target_macs": 0.01, "min_keep": 0.5})


def test_a_latency_is_a_target_as_the_others_are(make: Make) -> None:
    assert make(target_latency=0.5).targeted
    assert make(target_params=0.5).targeted
    assert not MRTSCallback(delta=1e-3).targeted


@pytest.mark.parametrize("make", ["mrts"], indirect=True)
def test_a_latency_target_is_met_by_measuring(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts a network's parameters, of which its table of MACs knows nothing."""
    meter = Counter(by="parameters")
    monkeypatch.setitem(METERS, "eager", lambda: meter)
    table = tmp_path / "times.json"
    options = {"target_latency": 0.6, "latency_batch": 4, "latency_table": str(table)}
    module, _, _ = fit(tmp_path, make, classifier(), options=options, max_epochs=5)
    assert size(module) / size(classifier()) == pytest.approx(0.6, rel=0.03)
    assert set(meter.batches) == {4}
    measured = len(meter.asked)
    assert measured == len(read_times(table, meter)) > 0
    with pytest.raises(PlanError, match=r"target_latency=0.01 cannot be met: .* still takes 0\.\d+"):
        fit(tmp_path, make, classifier(), options=options | {"target_latency": 0.01, "min_keep": 0.5}, max_epochs=5)
    assert len(meter.asked) == measured  # the file has them all


@pytest.mark.parametrize("make", ["mrts"], indirect=True)
def test_a_compact_classifier_saves_loads_and_goes_without_a_trainer(make: Make, tmp_path: Path) -> None:
    module, callback, run = fit(tmp_path, make, classifier(), options={"target_macs": 0.5}, max_epochs=5)
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


def test_a_norm_of_one_channel_stays_and_is_named(tmp_path: Path) -> None:
    module = Toy()
    module.net[0], module.net[1] = torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.BatchNorm2d(1)
    module.net[3] = torch.nn.Conv2d(1, 16, 3, stride=2)
    with pytest.warns(UserWarning, match="1: it has one channel"):
        _, callback, _ = fit(tmp_path, CHANNELS["mrts"], module)
    assert callback.numbers["macs"] <= 0.5
