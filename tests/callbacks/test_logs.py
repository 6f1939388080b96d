"""What is logged: scalars, numbers of layers, histograms, and the warning of a cliff at the removal."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_prune import LTPCallback, WeightUnits
from tests.callbacks.methods import CHANNELS, METHODS, fit, run
from tests.toy import Toy

WEIGHTS_KEYS = {
    "kept", "sparsity", "compression", "phase", "soft_accuracy", "hard_accuracy", "layer/net.3.weight/sparsity",
}  # fmt: skip
CHANNELS_KEYS = {
    "macs", "params", "channels", "phase", "gap", "layer/1/threshold", "layer/4/channels", "latency_ms",
    "latency_dense_ms", "soft_accuracy", "hard_accuracy",
}  # fmt: skip
LTP_KEYS = {"soft_kept", "band", "lambda", "soft_loss", "layer/net.3.weight/tau"}
OWN_KEYS = {"ltp": LTP_KEYS, "ltp sigmoid": LTP_KEYS | {"temperature"}}


def columns(path: Path, name: str, **options: Any) -> tuple[dict[str, list[float]], Any, lightning.Trainer]:
    """{metric: its values in order, without ``prune/``}, the callback and the trainer of a fit."""
    logger = CSVLogger(path, flush_logs_every_n_steps=1)
    _, callback, done = run(path, name, logger=logger, options=options)
    with open(f"{logger.log_dir}/metrics.csv") as f:
        rows = list(csv.DictReader(f))
    found = {key: [float(r[key]) for r in rows if r[key]] for key in rows[0] if key.startswith("prune/")}
    return {key.removeprefix("prune/"): values for key, values in found.items()}, callback, done


@pytest.mark.parametrize("name", ["ltp", "ltp sigmoid", "magnitude", "toy score"])
def test_numbers_of_weights(name: str, tmp_path: Path) -> None:
    found, _, done = columns(tmp_path, name)
    assert (WEIGHTS_KEYS | OWN_KEYS.get(name, set())) <= {k for k, v in found.items() if v}
    assert found["sparsity"][0] == 0
    assert found["sparsity"][-1] == pytest.approx(0.8, abs=1e-3)
    assert set(found["phase"]) == {0, 1, 2}
    assert found["phase"] == sorted(found["phase"])
    assert len(found["layer/net.3.weight/sparsity"]) == 5  # from the end of the first epoch that prunes
    if name == "ltp":
        assert len(found["layer/net.3.weight/tau"]) == 2  # at the ends of the two epochs that end with soft masks
    assert "prune/sparsity" in done.progress_bar_metrics
    assert done.callback_metrics["prune/compression"].item() == pytest.approx(5, rel=1e-2)


@pytest.mark.parametrize("name", [*CHANNELS, "toy channel statistics"])
def test_numbers_of_channels(name: str, tmp_path: Path) -> None:
    found, callback, done = columns(tmp_path, name, latency_batch=1)
    first = 1 if name in ("mrts", "slimming") else 0  # layers are named after norms, or after convolutions
    keys = {k.replace("layer/1/", f"layer/{first}/").replace("layer/4/", f"layer/{first + 3}/") for k in CHANNELS_KEYS}
    assert keys <= {k for k, v in found.items() if v}
    assert set(found["phase"]) == {0, 1, 2}
    assert found["phase"] == sorted(found["phase"])
    assert "prune/macs" in done.progress_bar_metrics
    for key in ("macs", "params", "channels"):
        assert done.callback_metrics[f"prune/{key}"].item() == pytest.approx(callback.numbers[key])
        assert found[key][0] == 1
        assert found[key][-1] == pytest.approx(callback.numbers[key])


def test_logged_sparsity_is_a_count(tmp_path: Path) -> None:
    """In every logged step the number is what counting the weights under the threshold gives."""
    pairs: list[tuple[float, float]] = []
    before = {"kept": 1.0}

    class Count(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            callback = trainer.callbacks[0]
            if callback.stage == "soft":
                before["kept"] = 1 - sum(callback.layer_zeros()) / callback.units.numel

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            logged = trainer.callback_metrics.get("prune/kept")
            if trainer.callbacks[0].stage == "soft" and logged is not None:
                pairs.append((float(logged), before["kept"]))

    _, callback, _ = fit(tmp_path, LTPCallback, callbacks=[Count()], options={"warmup": 0, "sparsify": 0.9})
    assert len(pairs) > 20
    for logged, counted in pairs:
        assert logged == pytest.approx(counted, abs=2 / callback.units.numel)


@pytest.mark.parametrize(("name", "layers", "epochs"), [("magnitude", 3, 3), ("mrts", 2, 1), ("fpgm", 2, 1)])
def test_histograms_are_opt_in(name: str, layers: int, epochs: int, tmp_path: Path) -> None:
    """Of all weights from the sparsify phase on; of scores in the phase."""
    for every in (0, 2):
        logger = TensorBoardLogger(tmp_path, name=f"every{every}")
        tags: list[str] = []
        logger.experiment.add_histogram = lambda tag, *a, tags=tags, **k: tags.append(tag)
        run(tmp_path, name, logger=logger, options={"histogram_every": every, "warmup": 0})
        assert len(tags) == (layers * epochs if every else 0)


class Cliff(LTPCallback):
    """Keeps the weights that the soft network had dropped."""

    def score(self, units: WeightUnits) -> torch.Tensor:
        return -super().score(units)


def test_a_cliff_at_the_removal_is_warned_of(tmp_path: Path) -> None:
    options = {"warmup": 0, "sparsify": 5, "recalibrate_batches": 20}
    with pytest.warns(UserWarning, match=r"The removal cost .* of accuracy on 20 training batches"):
        fit(tmp_path, Cliff, options=options, max_epochs=7)
    with pytest.warns(UserWarning, match=r"The removal cost .* \(.* before, .* after; max_gap=-1.0\)"):
        fit(tmp_path, METHODS["fpgm"], Toy(), options=options | {"max_gap": -1.0})
