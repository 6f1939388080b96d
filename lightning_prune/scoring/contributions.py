"""What each input channel adds to the sums of the layer that reads it, at places drawn at random."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

Reader = _ConvNd | nn.Linear


def reads_plainly(layer: nn.Module) -> bool:
    """Whether every output of a layer is one sum over all input channels, at places that its own attributes tell."""
    if isinstance(layer, nn.Linear):
        return True
    plain = isinstance(layer, _ConvNd) and layer.groups == 1 and not layer.transposed
    return plain and layer.padding_mode == "zeros"  # type: ignore[union-attr]


def draw_places(layer: Reader, shape: torch.Size, count: int, seed: int) -> Tensor:
    """Draws samples and positions of a layer's output, alike everywhere: int64 [count], indices into N x positions.

    Args:
        layer: that `reads_plainly`.
        shape: of its input, samples and channels first, [N, C, ...].
        count: how many.
        seed: of the draw.
    """
    total = shape[0] * prod(_output_size(layer, shape))
    return torch.randint(total, (count,), generator=torch.Generator().manual_seed(seed))


def patches(layer: Reader, x: Tensor, places: Tensor) -> Tensor:
    """What a layer multiplies by its weights at some places of its output.

    Args:
        layer: that `reads_plainly`.
        x: its input, samples and channels first, [N, C, ...].
        places: see `draw_places`, [P].

    Returns:
        [P, C, K], K positions of the kernel in the weight's order; 1 for a linear layer.
    """
    places = places.to(x.device)
    if isinstance(layer, nn.Linear):
        return x.transpose(0, 1).flatten(1).T[places].unsqueeze(2)
    size = _output_size(layer, x.shape)
    sample, position = places // prod(size), places % prod(size)
    x = F.pad(x, layer._reversed_padding_repeated_twice)
    inside = torch.zeros(len(places), 1, dtype=torch.int64, device=x.device)
    for dim, (width, kernel, stride, dilation) in enumerate(
        zip(x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    ):
        along = (position // prod(size[dim + 1 :])) % size[dim]
        steps = along[:, None] * stride + torch.arange(kernel, device=x.device) * dilation  # [P, kernel]
        inside = (inside[:, :, None] * width + steps[:, None, :]).flatten(1)
    return x.flatten(2).transpose(1, 2)[sample[:, None], inside].transpose(1, 2)


def contributions(layer: Reader, x: Tensor, count: int, seed: int = 0) -> Tensor:
    """What each input channel adds to one output at each of some places; all of them add up to it, less the bias.

    Places and outputs are drawn at random, as in ThiNet.

    Args:
        layer: that `reads_plainly`.
        x: its input, samples and channels first, [N, C, ...].
        count: how many places.
        seed: of the draw.

    Returns:
        [count, C].
    """
    places = draw_places(layer, x.shape, count, seed)
    outputs = torch.randint(len(layer.weight), (count,), generator=torch.Generator().manual_seed(seed + 1))
    weight = layer.weight.detach().flatten(2) if layer.weight.ndim > 2 else layer.weight.detach().unsqueeze(2)
    return (patches(layer, x, places) * weight.to(x.dtype)[outputs.to(x.device)]).sum(2)


def _output_size(layer: Reader, shape: torch.Size) -> list[int]:
    if isinstance(layer, nn.Linear):
        return list(shape[2:])
    pads = layer._reversed_padding_repeated_twice
    dims = enumerate(zip(shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True))
    extra = [pads[-2 * d - 2] + pads[-2 * d - 1] for d in range(len(shape) - 2)]
    return [(n + extra[d] - dilation * (kernel - 1) - 1) // stride + 1 for d, (n, kernel, stride, dilation) in dims]
