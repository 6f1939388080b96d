"""The modules of random networks that PyTorch has no class for: how users move, split, gate and attend.

Widths that code counts on are read off the input, kept in a public attribute, or in one that nobody can find: `by` is
"shape", "attribute" or "literal".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FUNCTIONS: dict[str, Any] = {
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "max": lambda x, y: torch.maximum(x, y),
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "square": lambda x: x * x,
    "one more": lambda x: 1.0 + x,
    "flip": lambda x: x.flip(1),
    "mean": lambda x: x.mean(tuple(range(2, x.ndim))),
    "mean of tokens": lambda x: x.mean(1),
    "first": lambda x: x[:, 0],
    "flatten": lambda x: x.flatten(1),
    "to tokens": lambda x: x.flatten(2).transpose(1, 2),
    "to map": lambda x: x.transpose(1, 2),
    "gate": lambda x, v: x * v.sigmoid().reshape(*v.shape, *(1,) * (x.ndim - 2)),
    "softmax": lambda x: x.softmax(1),
}


class Does(nn.Module):
    """A function of tensors as a module, by name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def extra_repr(self) -> str:
        """The function."""
        return self.name

    def forward(self, *given: Tensor) -> Any:
        """Applies it."""
        return FUNCTIONS[self.name](*given)


class Cat(nn.Module):
    """Channels one after the other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *given: Tensor) -> Tensor:
        """Along its dim."""
        return torch.cat(given, self.dim)


class Parts(nn.Module):
    """Splits channels: `sizes` by "split", equal parts by "chunk", or slices by "slice"."""

    def __init__(self, sizes: list[int], how: str, by: str, dim: int) -> None:
        super().__init__()
        self.how, self.dim = how, dim
        if by == "attribute":
            self.sizes = tuple(sizes)
        self._sizes = tuple(sizes)

    def forward(self, x: Tensor) -> Any:
        """Tensors, as many as there are sizes."""
        sizes = getattr(self, "sizes", self._sizes)
        if self.how == "chunk":
            return x.chunk(len(sizes), self.dim)
        if self.how == "split":
            return x.split(sizes, self.dim)
        return x.narrow(self.dim, 0, sizes[0]), x.movedim(self.dim, 0)[sizes[0] :].movedim(0, self.dim)


class Shuffle(nn.Module):
    """The channel shuffle of ShuffleNet, by two reshapes."""

    def __init__(self, channels: int, groups: int, by: str) -> None:
        super().__init__()
        self.groups, self._each = groups, channels // groups
        if by != "literal":
            self.each = channels // groups
        self._by = by

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of x."""
        each = {"shape": x.shape[1] // self.groups}.get(self._by, getattr(self, "each", self._each))
        y = x.reshape(x.shape[0], self.groups, each, *x.shape[2:]).transpose(1, 2)
        return y.reshape(x.shape[0], self.groups * each, *x.shape[2:])


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels of x."""
        gate = self.up(F.relu(self.down(x.mean(tuple(range(2, x.ndim)))))).sigmoid()
        return x * gate.reshape(*gate.shape, *(1,) * (x.ndim - 2))


class Scaled(nn.Module):
    """A parameter for each channel: a factor (a layer scale) or a summand (an embedding of positions)."""

    def __init__(self, shape: tuple[int, ...], how: str) -> None:
        super().__init__()
        self.how, self.vector = how, nn.Parameter(torch.randn(shape) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of x."""
        return x * self.vector if self.how == "scale" else x + self.vector


class Led(nn.Module):
    """A class token before the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1 + T, C]"""
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class Norm2d(nn.LayerNorm):
    """A layer norm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of x."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Attention(nn.Module):
    """Self-attention; `how` is "fused" (the operator), "plain" (two products), or "scaled" (fused, explicit scale)."""

    def __init__(self, channels: int, heads: int, width: int, how: str, by: str, one: bool) -> None:
        super().__init__()
        self.num_heads, self.how, self._by, self._width = heads, how, by, width
        if by != "literal":
            self.head_dim = width
        self.scale = width**-0.5
        if one:
            self.qkv = nn.Linear(channels, 3 * heads * width)
        else:
            self.q, self.k, self.v = (nn.Linear(channels, heads * width, bias=False) for _ in range(3))
        self.proj = nn.Linear(heads * width, channels)

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of x, [N, T, C]."""
        n, t, _ = x.shape
        width = {"shape": -1}.get(self._by, getattr(self, "head_dim", self._width))
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(x).reshape(n, t, self.num_heads, width).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.how == "plain":
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale if self.how == "scaled" else None)
        return self.proj(y.transpose(1, 2).flatten(2))


class Itself(nn.Module):
    """A layer of PyTorch's that takes queries, keys and values, on one tensor."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """In the shape of x, [N, T, C]."""
        return self.attend(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    """A recurrent layer; `last` gives the last hidden state of it, otherwise the whole sequence comes out."""

    def __init__(self, kind: str, inputs: int, hidden: int, layers: int, both: bool, last: bool) -> None:
        super().__init__()
        options: dict[str, Any] = {"num_layers": layers, "bidirectional": both, "batch_first": True}
        self.rnn, self.last = getattr(nn, kind)(inputs, hidden, **options), last

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, C] -> [N, T, hidden] or [N, hidden]"""
        out, state = self.rnn(x)
        return (state[0] if isinstance(state, tuple) else state)[-1] if self.last else out


class Cell(nn.Module):
    """Two steps of a recurrent cell on one vector."""

    def __init__(self, kind: str, inputs: int, hidden: int) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(inputs, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] -> [N, hidden]"""
        state = self.cell(x, self.cell(x))
        return state[0] if isinstance(state, tuple) else state
