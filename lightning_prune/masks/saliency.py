"""Saliency-and-pruning modules: what enters a layer decides, sample by sample, which of its output channels run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_prune.functional.gating import straight_through
from lightning_prune.masks.gates import Gate
from lightning_prune.support.noise import Noise


class SaliencyGate(Gate):
    """Multiplies a layer's output by ``1[s > 0]``, ``s = W₂·relu(W₁·mean(x) + b₁) + b₂``, x what enters the layer.

    The step has the gradient of the sigmoid. All channels are on at the start.

    Args:
        inputs: channels that enter the layer.
        free: bool [outputs], its channels that may be off.
        listens, speaks: the channels' dim of its input, and of what is gated, from the end.
        reduction: inputs per hidden unit.
        noise: what the weights are drawn from.
        device: of the weights.
    """

    def __init__(
        self, inputs: int, free: Tensor, listens: int, speaks: int, reduction: int, noise: Noise, device: torch.device
    ) -> None:
        hidden, outputs = max(1, inputs // reduction), len(free)
        self.free, self.listens, self.speaks = free.to(device), listens, speaks
        here = torch.empty(0, device=device)
        self.weights = [
            (2 * noise.uniform(hidden, inputs, like=here) - 1) * (6 / inputs) ** 0.5,
            torch.zeros(hidden, device=device),
            (2 * noise.uniform(outputs, hidden, like=here) - 1) * 0.1 * hidden**-0.5,
            torch.ones(outputs, device=device),
        ]
        for weight in self.weights:
            weight.requires_grad_()
        self.pooled: Tensor | None = None
        self.saliency: Tensor | None = None  # [rows, outputs], of the last call
        self.open: Tensor | None = None  # 0 or 1, of the same shape

    def __call__(self, x: Tensor) -> Tensor:
        if self.pooled is None:
            raise RuntimeError("a gate was asked before its layer was: gate what the layer's output goes through.")
        first, bias, second, offset = self.weights
        hidden = (self.pooled.float() @ first.t() + bias).relu()
        self.saliency = hidden @ second.t() + offset
        self.open, self.pooled = torch.where(self.free, straight_through(self.saliency), 1.0), None
        shape = [len(x)] + [1] * (x.ndim - 1)
        shape[self.speaks] = self.open.shape[1]
        return x * self.open.view(shape).to(x.dtype)

    def parameters(self) -> Sequence[Tensor]:
        return self.weights

    def expire(self) -> None:
        self.pooled = self.saliency = self.open = None


class Listener(Gate):
    """Stands before the layer of a `SaliencyGate`, tells it what enters, and lets it through."""

    def __init__(self, gate: SaliencyGate) -> None:
        self.gate = gate

    def __call__(self, x: Tensor) -> Tensor:
        places = [d for d in range(1, x.ndim) if d != x.ndim + self.gate.listens]
        self.gate.pooled = x.mean(places) if places else x
        return x

    def expire(self) -> None:
        self.gate.expire()
