"""Channels removed in mid-fit from a network with a head that only runs in train mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune import FPGMCallback, MRTSCallback
from tests.callbacks.methods import Make, equal, fit, keep_all, size
from tests.toy import CLASSES, Toy, loaders, network


class Net(nn.Module):
    """The toy network with a head on its first map in train mode; `looks` at values there, which cannot be traced."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.main, self.side, self.looks = network(), nn.Linear(8, CLASSES), looks

    def forward(self, x: torch.Tensor) -> Any:
        maps = self.main[:3](x)
        out = self.main[3:](maps)
        if not self.training:
            return out
        if self.looks and maps.sum() < 0:
            maps = maps + 1
        return out, self.side(maps.mean((2, 3)))


class Supervised(Toy):
    """Trains both heads."""

    def __init__(self, looks: bool) -> None:
        super().__init__(built="never")
        self.net = Net(looks)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return sum(F.cross_entropy(out, y) for out in self(x))


@pytest.mark.parametrize("make", [MRTSCallback, FPGMCallback])
@pytest.mark.parametrize("looks", [False, True])
def test_it_trains_on_after_the_removal(make: Make, looks: bool, tmp_path: Path) -> None:
    options = {"target_macs": 0.6, "warmup": 1, "sparsify": 1, "min_keep": 0.1}
    module, callback, done = fit(
        tmp_path, make, Supervised(looks), data=loaders(8, 16), options=options, max_epochs=3,
        num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    assert callback.stage == "pruned"
    assert callback.numbers["macs"] <= 0.601
    assert done.global_step == 6
    assert module.net.side.in_features == module.net.main[0].out_channels
    if looks:
        assert module.net.side.in_features == 8
    else:
        assert callback.pruned.proof.training


class Scaled(nn.Module):
    """Takes a keyword beside its input."""

    def __init__(self) -> None:
        super().__init__()
        self.main = network()

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return self.main(x * scale)


class Calling(Toy):
    """Calls its network with a positional and a keyword argument."""

    def __init__(self) -> None:
        super().__init__(built="never")
        self.net, self.loss = Scaled(), nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x, scale=x.new_ones(()))


def test_keywords_beside_positional_arguments_and_across_a_resume(tmp_path: Path) -> None:
    options = {"target_macs": 0.6, "warmup": 1, "sparsify": 1, "min_keep": 0.1, "network": "net"}
    common: dict[str, Any] = {"data": loaders(8, 16), "max_epochs": 3, "num_sanity_val_steps": 0}
    whole, *_ = fit(tmp_path / "a", FPGMCallback, Calling(), [keep_all(tmp_path, 1)], options=options, **common)
    assert size(whole.net) < size(Scaled())
    resumed, *_ = fit(
        tmp_path / "b", FPGMCallback, Calling(), options=options, ckpt_path=tmp_path / "step=3.ckpt", **common
    )
    assert equal(whole, resumed)
