"""Networks with branches, and ways to kill one."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.channels import prune_channels
from tests.channels.models import conv_bn, randomise

prune_whole = partial(prune_channels, remove_branches=True)

EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LARGER = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A stem, residual blocks of two convolutions each, a head; `between` runs inside the first block."""

    def __init__(self, blocks: int = 2, between: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_bn(8, 6), nn.Identity(), nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
            for _ in range(blocks)
        )
        if between is not None:
            self.blocks[0][1] = between
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class Parallel(nn.Module):
    """Two branches side by side and nothing around them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = conv_bn(3, 6), conv_bn(3, 7), nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(x)], 1).mean((2, 3)))


def kill(model: nn.Module, *norms: str, shift: bool = True) -> nn.Module:
    """No scale factors, and no shifts if `shift`."""
    for name in norms:
        norm = model.get_submodule(name)
        nn.init.zeros_(norm.weight)
        if shift:
            nn.init.zeros_(norm.bias)
    return model


def residual(*norms: str, shift: bool = True, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return kill(randomise(Residual(**options)), *norms, shift=shift)


def backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=7))


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
