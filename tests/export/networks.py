"""Networks that the tests of deployment share."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import prune_channels
from tests.toy import network, samples

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def batches(n: int = 64, size: int = 16, seed: int = 0) -> list[Any]:
    """(images, labels), of the toy data."""
    images, labels = samples(n, seed).tensors
    return list(zip(images.split(size), labels.split(size), strict=True))


@functools.cache
def trained() -> nn.Sequential:
    """The toy network after a few steps: it does better than chance. Not to be changed."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(12):
        for images, labels in batches():
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return net.eval()


@functools.cache
def compact() -> nn.Sequential:
    """The trained network at half the MACs, trained on. Not to be changed."""
    net = network()
    net.load_state_dict(trained().state_dict())
    prune_channels(net, X, score="l1", macs=0.6, verify=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(8):
        for images, labels in batches():
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return net.eval()


class Depthwise(nn.Module):
    """A large convolution, a depthwise one, and a squeeze-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(1, 8, 3, padding=1)
        self.thin = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.thin(self.large(x).relu()).relu()
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.head(x.mean((2, 3)))


class TwoInputs(nn.Module):
    """Two inputs, one by keyword, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor, *, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x) + self.b(y), y * 2


class FixedBatch(nn.Module):
    """Turns the batch size into a Python number."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(int(x.shape[0]) * 2).reshape(int(x.shape[0]), 2)[:, :1].float() if len(x) == 2 else x


class Noisy(nn.Module):
    """Random in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)
