"""Models to save, and what makes two of them the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.io.format.bitmask import bits


def thin(model: nn.Module, sparsity: float = 0.9) -> nn.Module:
    """Zeroes that share of the weights of convolutions and linear layers, at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter[torch.rand(parameter.shape, generator=generator) < sparsity] = 0
    return model


def by_rule(model: nn.Module) -> nn.Module:
    """Fills a model with numbers that any version writes alike; nine in ten weights are zero."""
    with torch.no_grad():
        for i, tensor in enumerate(model.state_dict().values()):
            n = torch.arange(tensor.numel())
            values = ((n * 7 + i) % 13 - 6) / 8
            if tensor.ndim > 1:
                values[n % 10 > 0] = 0
            tensor.copy_(values.reshape(tensor.shape))
    return model


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and bits(x.contiguous()).equal(bits(y.contiguous()))
        for x, y in zip(a.values(), b.values(), strict=True)
    )


def classifier(model: nn.Module, **hparams: Any) -> nn.Module:
    """The outside of a LightningModule around a timm model."""
    module = nn.Module()
    module.model = model
    module.hparams = SimpleNamespace(**hparams)  # type: ignore[assignment]
    return module
