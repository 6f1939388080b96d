"""Optimizers that move weights whose gradient is zero: what is pruned stays pruned all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune import KeepZeros
from tests.callbacks.methods import equal, keep_all, run
from tests.toy import CLASSES, Toy, loaders, trainer, zeros

N = 64 * 16 + 16 * CLASSES


class Noisy(torch.optim.SGD):
    """Adds noise to every weight, after the step of its base class."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(1e-3)
        return loss


class SharpnessAware(torch.optim.SGD):
    """Steps by the gradient of the worst place nearby (Foret et al., arXiv 2010.01412): two closures a step."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        size = torch.stack([p.grad.norm() for p in params]).norm().clamp_min(1e-12)
        moves = [0.05 / size * p.grad for p in params]
        for p, move in zip(params, moves, strict=True):
            p.data.add_(move)
        with torch.enable_grad():
            closure()
        for p, move in zip(params, moves, strict=True):
            p.data.sub_(move)
        super().step()
        return loss


class Linear(Toy):
    """Two linear layers, trained by an optimizer that is named."""

    def __init__(self, name: str, rate: float = 1.0) -> None:
        super().__init__("never")
        torch.manual_seed(0)
        self.name, self.rate = name, rate
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.ndim == 2]
        optimizer: Any = {
            "noisy": lambda: Noisy(matrices, lr=0.05),
            "muon": lambda: torch.optim.Muon(matrices, lr=0.02),
            "sharpness-aware": lambda: SharpnessAware(matrices, lr=0.05),
            "sgd": lambda: torch.optim.SGD(matrices, lr=0.05, momentum=0.9),
        }[self.name]()
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step else self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


OPTIMIZERS = ["noisy", "sharpness-aware", *(["muon"] if hasattr(torch.optim, "Muon") else [])]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["ltp", "oneshot"])
def test_pruned_weights_stay_zero(method: str, optimizer: str, tmp_path: Path) -> None:
    module, _, _ = run(tmp_path / "whole", method, Linear(optimizer), callbacks=[keep_all(tmp_path)])
    assert abs(zeros(module) - 0.8 * N) <= 1
    at_prune = torch.load(tmp_path / "step=33.ckpt", weights_only=True)["state_dict"]
    for name, p in module.named_parameters():
        if p.ndim == 2:
            assert torch.equal(p == 0, at_prune[name] == 0)
            assert not torch.equal(p, at_prune[name])
    again, _, _ = run(tmp_path / "again", method, Linear(optimizer), ckpt_path=tmp_path / "step=45.ckpt")
    assert equal(module, again)


@pytest.mark.parametrize("rate", [1.0, 0.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_zeros_that_a_model_comes_with_stay_also_after_a_first_step_at_rate_zero(
    optimizer: str, rate: float, tmp_path: Path
) -> None:
    module = Linear(optimizer, rate)
    for p in module.parameters():
        p.data[torch.rand_like(p) < 0.5] = 0
    before = {n: p == 0 for n, p in module.named_parameters()}
    trainer(tmp_path, [KeepZeros()], max_epochs=1).fit(module, **loaders())
    assert all(torch.equal(p == 0, before[n]) for n, p in module.named_parameters() if p.ndim == 2)


def test_an_optimizer_that_leaves_them_alone_is_watched_for_a_step_alone(tmp_path: Path) -> None:
    module, callback, _ = run(tmp_path, "ltp", Linear("sgd"))
    assert abs(zeros(module) - 0.8 * N) <= 1
    assert not callback._keeper._zeros
