"""Tensors under two names: stored once, and tied again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.io import PrunedFileError, load_pruned, save_pruned
from lightning_prune.io.format.sparsefile import read_header
from tests.io.models import same_bits


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(60, 30)
        self.decoder = nn.Linear(30, 60, bias=False)
        self.decoder.weight = self.encoder.weight


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    path = save_pruned(model, tmp_path / "m.safetensors")
    header = read_header(path)
    assert (list(header.tensors), header.aliases) == (["encoder.weight"], {"decoder.weight": "encoder.weight"})
    assert path.stat().st_size < 1.2 * 60 * 30 * 4
    target = Tied()
    loaded = load_pruned(path, target)
    assert loaded is target
    assert target.decoder.weight is target.encoder.weight
    assert same_bits(model.state_dict(), target.state_dict())
    half = load_pruned(save_pruned(Tied().half(), path), Tied())
    assert half.decoder.weight is half.encoder.weight
    assert half.decoder.weight.dtype == torch.float16


def test_a_model_that_ties_what_differs_is_refused(tmp_path: Path) -> None:
    model = Tied()
    model.decoder.weight = nn.Parameter(torch.randn(60, 30))
    path = save_pruned(model, tmp_path / "m.safetensors")
    assert read_header(path).aliases == {}
    with pytest.raises(PrunedFileError, match="ties"):
        load_pruned(path, Tied())
