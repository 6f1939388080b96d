"""A small language model of characters, on the text of Python's own help, which comes with every Python."""

from __future__ import annotations

import math
from pydoc_data.topics import topics
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

WINDOW = 64
ALPHABET = [chr(c) for c in (10, *range(32, 127))]


def text() -> Tensor:
    """The help topics in alphabetical order, as numbers of printable ASCII characters; [characters]."""
    number = {c: i for i, c in enumerate(ALPHABET)}
    return torch.tensor([number[c] for name in sorted(topics) for c in topics[name] if c in number])


def loaders(characters: int, seed: int, batch_size: int = 16) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Windows of the first characters to train on, and a ninth as many of those after them to test on."""
    numbers = text()
    if len(numbers) < characters + characters // 9:
        raise ValueError(f"characters={characters}: the text has {len(numbers)}, of which a tenth is to test on.")
    train, test = numbers[:characters], numbers[characters : characters + characters // 9]

    def windows(part: Tensor) -> TensorDataset:
        return TensorDataset(part[: len(part) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1))

    order = torch.Generator().manual_seed(seed)
    return (
        DataLoader(windows(train), batch_size, shuffle=True, drop_last=True, generator=order),
        DataLoader(windows(test), 256),
    )


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
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Characters(lightning.LightningModule):
    """A Transformer that predicts the next character; tested in bits per character."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4, lr: float = 3e-3) -> None:
        super().__init__()
        self.lr = lr
        self.embed, self.place = nn.Embedding(len(ALPHABET), width), nn.Embedding(WINDOW, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(ALPHABET))

    def forward(self, x: Tensor) -> Tensor:
        places = self.place(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(self.embed(x) + places)))

    def _loss(self, batch: list[Tensor]) -> Tensor:
        windows = batch[0]
        return F.cross_entropy(self(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self._loss(batch)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("bits", self._loss(batch) / math.log(2), batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
