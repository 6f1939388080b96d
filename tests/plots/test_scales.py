"""Histograms of scale factors show what they are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_prune.plots import scale_histograms


def test_every_method_and_layer_has_its_histogram(tmp_path: Path) -> None:
    layers = {"bn1": torch.cat([torch.zeros(10), torch.ones(6)]), "bn2": -torch.rand(32)}
    figure = scale_histograms({"L1": layers, "MR": layers}, thresholds={"MR": 0.5}, bins=10)
    assert len(figure.axes) == 4
    counts = [patch.get_height() for patch in figure.axes[0].patches]
    assert counts[0] == 10
    assert counts[-1] == 6
    assert [len(ax.lines) for ax in figure.axes] == [0, 0, 1, 1]
    assert figure.axes[3].get_title() == "MR: bn2"
    figure.savefig(tmp_path / "scales.png")
    assert (tmp_path / "scales.png").stat().st_size > 5000


def test_a_layer_can_have_its_own_threshold() -> None:
    layers = {"bn1": torch.rand(4), "bn2": torch.rand(4)}
    figure = scale_histograms({"MR": layers}, thresholds={"MR": {"bn2": 0.25}})
    assert [[line.get_xdata()[0] for line in ax.lines] for ax in figure.axes] == [[], [0.25]]


def test_methods_with_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="the same layers"):
        scale_histograms({"L1": {"a": torch.ones(2)}, "MR": {"b": torch.ones(2)}})
