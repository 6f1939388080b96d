"""Sparsity and compression as torchmetrics: zeros and weights are summed over updates and ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_prune.report import count_zeros, sparsity_report


class _Zeros(Metric):
    """Counts zeros and weights. ``update`` takes a module (its conv and linear weights, tied ones once) or a tensor."""

    full_state_update = False
    is_differentiable = False
    zeros: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("zeros", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, weights: nn.Module | Tensor) -> None:
        """Add the weights of a module, or of one tensor."""
        if isinstance(weights, nn.Module):
            report = sparsity_report(weights)
            self.zeros += report.zeros
            self.total += report.prunable
        else:
            self.zeros += count_zeros(weights)
            self.total += weights.numel()


class Sparsity(_Zeros):
    """Share of zeros among prunable weights, from 0 to 1.

    >>> import torch
    >>> metric = Sparsity()
    >>> metric.update(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    >>> metric.compute()
    tensor(0.7500)
    """

    higher_is_better = None

    def compute(self) -> Tensor:
        """Zeros / weights, a scalar; 0 before any update."""
        return self.zeros.double().div(self.total.clamp_min(1)).float()


class CompressionRatio(_Zeros):
    """Prunable weights / non-zero ones, from 1 up; infinite if every weight is zero.

    >>> import torch
    >>> metric = CompressionRatio()
    >>> metric.update(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    >>> metric.compute()
    tensor(4.)
    """

    higher_is_better = None

    def compute(self) -> Tensor:
        """Weights / non-zeros, a scalar; 1 before any update."""
        if not self.total:
            return torch.tensor(1.0)
        return self.total.double().div(self.total - self.zeros).float()
