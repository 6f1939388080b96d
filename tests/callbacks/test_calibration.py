"""Runs on calibration batches: what the network raises is said to be its own, all else is raised as it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_prune import ChannelUnits, Gate, MagnitudeCallback, WeightUnits
from lightning_prune.callbacks import calibrate, lifecycle
from lightning_prune.errors import CalibrationError
from tests.callbacks import toys
from tests.callbacks.methods import CHANNELS, Make, fit
from tests.toy import Toy


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
