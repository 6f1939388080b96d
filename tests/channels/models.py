"""Small models that use what users use: residuals, concats, shared layers, groups, attention, hard-coded widths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Branches(nn.Module):
    """Residual, concat, a layer used twice, and a width in a Python integer."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.half = width // 2
        self.stem = conv_bn(3, width)
        self.left = conv_bn(width, width)
        self.right = conv_bn(width, 10)
        self.shared = conv_bn(width, width)
        self.part = conv_bn(self.half, 7, 1)
        self.head = nn.Linear(width + 10 + 7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.left(x)
        x = self.shared(self.shared(x))
        parts = torch.cat([x, self.right(x), self.part(x[:, : self.half])], dim=1)
        return self.head(parts.mean((2, 3)))


class Chain(nn.Module):
    """A plain chain with a flattened map before the classifier."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 6), norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, padding=1)]
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers += [nn.ReLU()]
            inputs = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4 * inputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class Attention(nn.Module):
    """Self-attention over a convolution's map; `fused` uses the fused operator without an explicit scale."""

    def __init__(self, width: int = 16, heads: int = 4, fused: bool = False, scale: float | None = 0.5) -> None:
        super().__init__()
        self.heads, self.fused, self.scale = heads, fused, scale
        self.stem = conv_bn(3, 8)
        self.qkv = nn.Linear(8, 3 * width)
        self.project = nn.Linear(width, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            y = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        y = self.project(y.transpose(1, 2).flatten(2))
        return self.head((x + y).mean(1))


class OptionA(nn.Module):
    """The parameter-free shortcut of the CIFAR ResNets: strided, padded with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.inner = conv_bn(8, 16, stride=2)
        self.outer = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.outer(self.inner(x))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """Two layers with one weight, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.first = nn.Conv2d(8, 8, 1, bias=False)
        self.second = nn.Conv2d(8, 8, 1, bias=False)
        self.second.weight = self.first.weight
        self.wide = conv_bn(8, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.second(self.first(x).relu()).relu()
        return self.head(self.wide(x).mean((2, 3)))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random scale factors, shifts and statistics; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.weight.data = torch.rand(module.weight.shape, generator=generator) + 0.5
            module.bias.data = 0.2 * torch.randn(module.bias.shape, generator=generator)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.bias.shape, generator=generator) + 0.5)
    return model.eval()


def random_scores(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A random score for every channel of every BatchNorm."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(m.num_features, generator=generator)
        for name, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine
    }


def silenced(model: nn.Module, plan: Any) -> nn.Module:
    """The reference that the library does not compute itself: zeroes what the plan removes, in the dense model."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers())
    with torch.no_grad():
        for name, cut in plan.cuts.items():
            for dim, kept in cut.kept.items():
                gone = [i for i in range(cut.shape[dim]) if i not in set(kept)]
                tensors[name].index_fill_(dim, torch.tensor(gone), 0.0)
    return model


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether a model's state is what it was."""
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], v) for k, v in before.items())
