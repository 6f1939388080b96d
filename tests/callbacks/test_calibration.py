"""Runs on calibration batches: what the network raises is said to be its own, all else is raised as it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.nn import functional as F

from lightning_prune import ChannelUnits, FPGMCallback, Gate, LTPCallback, MagnitudeCallback, MRTSCallback, WeightUnits
from lightning_prune.callbacks import calibrate, lifecycle
from lightning_prune.errors import CalibrationError
from tests.callbacks import toys
from tests.callbacks.methods import CHANNELS, Make, fit, zeros
from tests.toy import Toy, loaders


class NoForward(Toy):
    """Trains by its network alone; a call of the module raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, *args: Any) -> torch.Tensor:
        raise self.error

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])


QUICK: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0}
OPTIONS = {"warmup": 0, "sparsify": 1}


def test_a_module_that_cannot_be_called_is_pruned_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[CalibrationError] = []
    original = calibrate.recalibrate

    def noting(*args: Any) -> int:
        try:
            return original(*args)
        except CalibrationError as error:
            raised.append(error)
            raise

    monkeypatch.setattr(lifecycle.calibrate, "recalibrate", noting)
    error = NotImplementedError("no forward here")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, callback, _ = fit(tmp_path, MagnitudeCallback, NoForward(error), options=OPTIONS, **QUICK)
    assert callback.stage == "pruned"
    (said,) = [str(w.message) for w in caught if "could not be called" in str(w.message)]
    assert "NoForward could not be called on a training batch (NotImplementedError: no forward here)" in said
    assert "Override `calibration_forward`" in said
    assert raised
    assert all(e.__cause__ is error for e in raised)


@pytest.mark.parametrize("name", CHANNELS)
def test_a_network_that_cannot_be_traced_is_an_error_with_its_cause(name: str, tmp_path: Path) -> None:
    error = NotImplementedError("no forward here")
    with pytest.raises(CalibrationError, match=r"cannot be traced: .*NotImplementedError: no forward here") as info:
        fit(tmp_path, CHANNELS[name], NoForward(error), options=OPTIONS, **QUICK)
    assert isinstance(info.value.__cause__, CalibrationError)
    assert info.value.__cause__.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError("none left"), torch.OutOfMemoryError("none left")], ids=repr)
@pytest.mark.parametrize("name", ["magnitude", *CHANNELS])
def test_running_out_of_memory_is_raised_as_it_is(name: str, error: Exception, tmp_path: Path) -> None:
    make = CHANNELS.get(name, MagnitudeCallback)
    with pytest.raises(type(error), match="none left") as info:
        fit(tmp_path, make, NoForward(error), options=OPTIONS, **QUICK)
    assert info.value is error


class Broken(toys.Sigmoid):
    """A gate that fails on calibration batches."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            raise ZeroDivisionError("in the gate")
        return super().__call__(x)


class BrokenWeights(toys.WeightGates):
    def gates(self, units: WeightUnits) -> Mapping[str, Gate]:
        self.sigmoids = {t.name: Broken(t.param.shape[1], 1) for t in units.targets}
        return self.sigmoids


class BrokenChannels(toys.ChannelGates):
    def gates(self, units: ChannelUnits) -> Mapping[str, Gate]:
        self.sigmoids = {path: Broken(len(ids), 1) for path, ids in units.sites().items()}
        return self.sigmoids


@pytest.mark.parametrize("make", [BrokenWeights, BrokenChannels])
def test_a_fault_in_a_gate_is_raised_as_it_is(make: Make, tmp_path: Path) -> None:
    """The network's own call stands above the gate's, and yet the fault is not the network's."""
    options = OPTIONS | ({"target_sparsity": 0.5} if make is BrokenWeights else {})
    with pytest.raises(ZeroDivisionError, match="in the gate"):
        fit(tmp_path, make, options=options, **QUICK)


def batches_of(loader: Any) -> Any:
    """Two loaders of different length, in a container."""
    one, two = loaders(8)["train_dataloaders"], loaders(8, 32)["train_dataloaders"]
    return {"train_dataloaders": loader(one, two)}


LOADERS: dict[str, Any] = {
    "dict": lambda one, two: {"a": one, "b": two},
    "list": lambda one, two: [one, two],
    "combined": lambda one, two: CombinedLoader({"a": one, "b": two}, "min_size"),
}


class Several(Toy):
    """Trains on two batches at a time; its network is its own `forward` if ``whole``."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.batches: list[Any] = []
        if whole:
            self.other = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.batches.append(batch)
        parts = batch.values() if isinstance(batch, dict) else batch
        return sum(F.cross_entropy(self(x), y) for x, y in parts)


class Guided:
    """How to run the network on two batches."""

    def calibration_forward(self, module: Any, batch: Any) -> Any:
        vars(self).setdefault("shown", []).append(batch)
        (x, y), _ = batch.values() if isinstance(batch, dict) else batch
        return module(x), y


class GuidedMRTS(Guided, MRTSCallback):
    pass


class GuidedLTP(Guided, LTPCallback):
    pass


@pytest.mark.parametrize("make", [GuidedMRTS, GuidedLTP])
@pytest.mark.parametrize("kind", LOADERS)
def test_calibration_gets_what_training_step_gets(kind: str, make: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not re-estimated")
        module, callback, _ = fit(
            tmp_path, make, Several(whole=kind == "list"), data=batches_of(LOADERS[kind]), max_epochs=3,
            limit_val_batches=0, options={"warmup": 1, "sparsify": 1},
        )  # fmt: skip
    assert callback.stage == "pruned"
    for got in (module.batches[0], callback.shown[-1]):
        (one, _), (two, _) = got.values() if isinstance(got, dict) else got
        assert one.shape == two.shape == (8, 1, 8, 8)
        assert type(got) is type(module.batches[0])


@pytest.mark.parametrize("make", [MRTSCallback, FPGMCallback, toys.WeightStatistics])
def test_a_batch_that_cannot_be_guessed_is_an_error_before_the_warmup(make: Any, tmp_path: Path) -> None:
    module = Several()
    options = {"target_sparsity": 0.5} if make is toys.WeightStatistics else {}
    with pytest.raises(
        CalibrationError, match=r"(?s)TypeError: .*Override `calibration_forward` of the callback"
    ) as info:
        fit(tmp_path, make, module, data=batches_of(LOADERS["dict"]), options=options)
    assert not module.batches
    cause = info.value.__cause__
    assert isinstance(cause.__cause__ if isinstance(cause, CalibrationError) else cause, TypeError)


def test_statistics_that_cannot_be_re_estimated_are_named_before_the_warmup(tmp_path: Path) -> None:
    module = Several()
    with pytest.warns(UserWarning, match=r"(?s)Override `calibration_forward`.*or set recalibrate_batches=0"):
        _, callback, _ = fit(
            tmp_path, LTPCallback, module, data=batches_of(LOADERS["dict"]), limit_train_batches=2, max_epochs=1,
            limit_val_batches=0, options={"warmup": 0.5, "sparsify": 0.5},
        )  # fmt: skip
    assert callback.stage == "pruned"
    assert zeros(module) > 0


def test_an_override_that_fails_is_not_told_to_override(tmp_path: Path) -> None:
    class Wrong(MRTSCallback):
        def calibration_forward(self, module: Any, batch: Any) -> Any:
            return module(batch), None

    with pytest.raises(
        CalibrationError, match=r"(?s)`calibration_forward` of the callback failed .*TypeError.*Mend it"
    ):
        fit(tmp_path, Wrong)
