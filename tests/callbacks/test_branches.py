"""Structured methods on a network of which one branch dies while it is trained: the branch is removed in mid-fit."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune import LTPCallback, MRTSCallback, NetworkSlimmingCallback
from lightning_prune.channels.surgery.empty import branch_names
from lightning_prune.plan.record import plan_of
from tests.callbacks.methods import PHASES, equal, fit, keep_all, size
from tests.toy import CLASSES, Toy, loaders, trainer


class Residual(nn.Module):
    """A stem and two residual blocks on 1x8x8 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
                nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


def module(optimizer: str = "sgd") -> Toy:
    made = Toy(built="never", optimizer=optimizer)
    torch.manual_seed(1)
    made.net = Residual()
    return made


class Dies(lightning.Callback):
    """The first block's inner norm loses its scale factors, whatever the optimizer does."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        for p in pl_module.net.blocks[0][1].parameters():
            nn.init.zeros_(p) if p.numel() else None


@pytest.mark.parametrize(("method", "optimizer"), [(MRTSCallback, "sgd"), (NetworkSlimmingCallback, "adamw")])
def test_a_branch_is_removed_in_mid_fit_and_resumes_bit_for_bit(
    method: type, optimizer: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_prune.callbacks.logs.rank_zero_info", said.append)
    options = {"target_macs": 0.4, "min_keep": 0.25}
    whole, callback, run = fit(
        tmp_path / "whole", method, module(optimizer), [Dies(), keep_all(tmp_path / "whole")], options=options
    )
    plan = plan_of(whole)
    assert branch_names(plan) == ("blocks.0",)
    assert said[0].endswith("Branches removed whole: blocks.0.")
    assert callback.pruned.proof.equal
    assert callback.numbers["macs"] <= 0.4
    assert callback.numbers["params"] == size(whole) / size(module())
    # all that is left was trained on, with its optimizer state
    assert all(p.requires_grad == bool(p.numel()) for p in whole.parameters())
    for p, state in run.optimizers[0].state.items():
        assert all(v.shape == p.shape for v in state.values() if v.ndim)
    for step in (9, 30, 33, 45):  # in the phase, before the removal, after it, in finetune
        path = tmp_path / "whole" / f"step={step}.ckpt"
        again, resumed, _ = fit(
            tmp_path / f"{step}", method, module(optimizer), [Dies()], ckpt_path=path, options=options
        )
        assert equal(whole, again), step
        assert plan_of(again) == plan
        assert resumed.numbers == callback.numbers
    # weights of what is left are pruned by another method
    ltp = LTPCallback(target_sparsity=0.5, warmup=0, sparsify=2, finetune=1)
    trainer(tmp_path / "ltp", [ltp], max_epochs=3).fit(again, **loaders())
    assert ltp.units.targets
    assert branch_names(plan_of(again)) == ("blocks.0",)


def test_floors_hold_a_branch_that_still_does_something(tmp_path: Any) -> None:
    kept, _, _ = fit(tmp_path, MRTSCallback, module(), options=PHASES | {"target_macs": 0.6, "min_keep": 0.25})
    assert branch_names(plan_of(kept)) == ()
    assert min(block[0].out_channels for block in kept.net.blocks) >= 3


def test_an_excluded_branch_stays(tmp_path: Any) -> None:
    options = {"target_macs": 0.8, "exclude": ["blocks.0.1"]}
    kept, _, _ = fit(tmp_path, MRTSCallback, module(), [Dies()], options=options)
    assert kept.net.blocks[0][0].out_channels == 12
