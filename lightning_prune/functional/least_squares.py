"""Weights of a layer by least squares, from what it multiplies and what shall come out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Form = Literal["weights", "scale"]


def errors(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What is missing to what shall come out: y − x·w − b, [P, out]; see `least_squares`."""
    found = y - torch.einsum("pck,ock->po", x, weight)
    return found if bias is None else found - bias


def least_squares(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, form: Form = "weights", ridge: float = 1e-3
) -> tuple[Tensor, Tensor | None]:
    """The weights and bias of least squared error, ridge towards those at hand.

    Args:
        x: what weights multiply, float64 [P, C, K].
        y: what shall come out, float64 [P, out].
        weight: at hand, float64 [out, C, K].
        bias: at hand, float64 [out], or None.
        form: "weights" fits all of them, "scale" a factor for each input channel, alike for all outputs.
        ridge: how much a change counts beside the errors, as a share of the mean square of what it multiplies.

    Returns:
        ([out, C, K], [out] or None).
    """
    center = bias is not None
    rest = errors(x, y, weight, None)  # what a change has to explain
    mean_x, mean_rest = (x.mean(0), rest.mean(0)) if center else (torch.zeros_like(x[0]), torch.zeros_like(rest[0]))
    if form == "weights":
        flat = (x - mean_x).flatten(1)
        gram = flat.T @ flat / len(flat)
        change = _solve(gram, flat.T @ (rest - mean_rest) / len(flat), ridge).T.reshape(weight.shape)
        new = weight + change
    else:
        # What each channel adds at each place to each output is [C, P, out] numbers, too many to hold: the products of
        # two channels are those of their inputs times those of their weights.
        flat, side = (x - mean_x).flatten(1), weight.flatten(1)
        blocks = ((flat.T @ flat) * (side.T @ side)).view(*x.shape[1:], *x.shape[1:])
        right = ((rest - mean_rest).T @ flat * side).view_as(weight).sum((0, 2))
        factor = _solve(blocks.sum((1, 3)) / rest.numel(), right[:, None] / rest.numel(), ridge)
        new = weight * (1 + factor[:, 0])[None, :, None]
    return new, errors(x, y, new, None).mean(0) if center else None


def _solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    tiny = torch.finfo(gram.dtype).tiny
    level = ridge * gram.diagonal().mean().clamp_min(tiny)
    found: Tensor = torch.linalg.solve(gram + level * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), right)
    return found
