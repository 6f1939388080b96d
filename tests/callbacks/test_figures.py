"""PruningFigures beside each family: which figures there are, what they show, where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_prune import LTPCallback, MRTSCallback, PruningFigures, plots
from tests.toy import Toy, loaders


def fit(path: Path, *callbacks: Callback, logger: Any = False, epochs: int = 3) -> Toy:
    module = Toy()
    Trainer(
        max_epochs=epochs, callbacks=list(callbacks), default_root_dir=path, logger=logger, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    ).fit(module, **loaders())  # fmt: skip
    return module


def test_weights_that_are_pruned(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, "tensorboard"), CSVLogger(tmp_path, "csv")]
    pruning, drawn = LTPCallback(0.5, sparsify=2), PruningFigures(layers=2)
    module = fit(tmp_path, pruning, drawn, logger=loggers)
    found = drawn.figures()
    assert set(found) == {"over_time", "layers", "weights"}

    shares, taus = found["over_time"].axes
    kept = next(line for line in shares.lines if line.get_label() == "kept")
    assert kept.get_ydata()[-1] == pytest.approx(0.5, abs=2e-3)
    assert len(kept.get_ydata()) == 3 * 8
    assert len(next(line for line in shares.lines if line.get_label() == "soft_kept").get_ydata()) == 2 * 8 - 1
    assert len(taus.lines) == 3

    bars = [bar.get_height() for bar in found["layers"].axes[0].patches]
    zeros = [float((t.param == 0).float().mean()) for t in pruning.units.targets]
    assert bars == pytest.approx(zeros)
    scatter = found["weights"].axes[0].lines[0].get_xydata()
    first = pruning.units.targets[0].param.numel()
    assert len(scatter) == first
    assert (scatter[:, 1] == 0).sum() == pytest.approx(zeros[0] * first)
    assert (scatter[:, 0] != 0).all()
    assert not any(torch.isnan(p).any() for p in module.parameters())

    folder = Path(loggers[0].log_dir) / "figures"
    assert {file.name for file in folder.iterdir()} == {"over_time.png", "layers.png", "weights.png"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(loggers[0].log_dir)
    events.Reload()
    assert set(events.Tags()["images"]) == {"prune/over_time", "prune/layers", "prune/weights"}

    loggers[1].finalize("success")
    shares, sparsity, taus = sorted(plots.from_metrics(loggers[1].log_dir).axes, key=lambda ax: ax.get_ylabel())
    assert next(line for line in shares.lines if line.get_label() == "kept").get_ydata()[-1] == kept.get_ydata()[-1]
    assert len(sparsity.lines) == len(taus.lines) == 3


def test_channels_that_are_removed(tmp_path: Path) -> None:
    pruning, drawn = MRTSCallback(0.5, warmup=0, sparsify=2), PruningFigures(every=2, folder=str(tmp_path / "mine"))
    fit(tmp_path, pruning, drawn)
    found = drawn.figures()
    assert set(found) == {"over_time", "scales"}
    (shares,) = found["over_time"].axes
    macs = next(line for line in shares.lines if line.get_label() == "macs").get_ydata()
    assert macs[-1] == pytest.approx(pruning.numbers["macs"])
    assert pruning.selection is not None
    thresholds = pruning.selection.thresholds.tolist()
    drawn_at = [ax.lines[0].get_xdata()[0] for ax in found["scales"].axes]
    counts = [sum(bar.get_height() for bar in ax.patches) for ax in found["scales"].axes]
    assert len(drawn_at) == len(thresholds) == len(counts)
    assert counts == [8, 16][: len(counts)]
    assert {file.name for file in (tmp_path / "mine").iterdir()} == {"over_time.png", "scales.png"}


def test_it_needs_a_callback_that_prunes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this trainer has none"):
        fit(tmp_path, PruningFigures())
    with pytest.raises(ValueError, match="every=-1"):
        PruningFigures(every=-1)
