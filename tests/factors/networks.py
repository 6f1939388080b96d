"""Networks whose layers become two, and what they are compared with."""

from __future__ import annotations

import copy
from typing import Any

import timm
import torch
from torch import nn

from lightning_prune import (
    factorize,
)

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}


def vit() -> nn.Module:
    """A ViT of one block."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **SMALL).eval()


def network() -> nn.Sequential:
    """Convolutions with kernel, stride, padding and none of them, one used twice, and a linear layer."""
    torch.manual_seed(0)
    shared = nn.Conv2d(12, 12, 1)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(12), nn.ReLU(),
        shared, nn.ReLU(), shared, nn.Conv2d(12, 16, 1, stride=2, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip


RANKS = {"0": 4, "3": 3, "6": 5, "10": 4}
X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def truncated(model: nn.Module, ranks: dict[str, int]) -> nn.Module:
    """The dense model with the truncated decompositions of its weights, by PyTorch's own."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for path, rank in ranks.items():
            w = model.get_submodule(path).weight
            u, s, v = torch.linalg.svd(w.flatten(1), full_matrices=False)
            w.copy_(((u[:, :rank] * s[:rank]) @ v[:rank]).view_as(w))
    return model


def factorized(model: nn.Module, ranks: Any = RANKS) -> nn.Module:
    factorize(model, ranks=ranks)
    return model
