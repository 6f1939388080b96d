"""A language model of characters, a causal Transformer, by name in timm's registry as the networks of images are."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.zoo.models import register_model


class Block(nn.Module):
    """Causal self-attention and a perceptron, each behind a norm and around a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class CharacterTransformer(nn.Module):
    """Predicts each next character from those before it in a window (Vaswani et al. 2017, the decoder alone).

    Args:
        num_classes: size of the alphabet.
        in_chans: 1; there for the sake of those who build networks by name.
        width: of the stream.
        depth: blocks.
        heads: of each attention; ``width`` is a multiple of it.
        length: of the longest window, in characters.

    Raises:
        ValueError: heads do not divide the width, or ``in_chans`` is not 1.
    """

    def __init__(
        self, num_classes: int = 256, in_chans: int = 1, width: int = 64, depth: int = 2, heads: int = 4,
        length: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads or in_chans != 1:
            raise ValueError(f"width={width} must be a multiple of heads={heads}, and in_chans={in_chans} must be 1.")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.embed, self.place = nn.Embedding(num_classes, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes, T] of the characters behind those of windows [N, T], int64, T ≤ ``length``."""
        places = self.place(torch.arange(x.shape[1], device=x.device))
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(x) + places)))
        return logits.transpose(1, 2)


default_cfgs = generate_default_cfgs({
    "character_transformer": {"url": "", "num_classes": 256, "classifier": "head", "license": "apache-2.0"}
})  # fmt: skip


@register_model
def character_transformer(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A language model of characters; the keyword arguments are those of `CharacterTransformer`."""
    model: nn.Module = build_model_with_cfg(CharacterTransformer, "character_transformer", pretrained, **kwargs)
    return model
