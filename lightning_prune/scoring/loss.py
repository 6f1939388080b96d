"""The loss that gradients are of, where a score is not given another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.functional.ltp import at_least_float32


def task_loss(output: Any, labels: Tensor | None) -> Tensor:
    """Cross-entropy for class indices or probabilities, squared error for numbers.

    Raises:
        ValueError: output and labels fit neither.
    """
    if torch.is_tensor(output) and labels is not None:
        if not labels.is_floating_point() and output.ndim == labels.ndim + 1:
            return F.cross_entropy(at_least_float32(output), labels.long())
        if labels.is_floating_point() and output.shape == labels.shape:
            classes = output.ndim == 2 and bool((labels.sum(1) - 1).abs().max() < 1e-3)
            return (
                F.cross_entropy(at_least_float32(output), labels.to(output.dtype))
                if classes
                else F.mse_loss(output, labels)
            )
    shapes = [tuple(t.shape) if torch.is_tensor(t) else type(t).__name__ for t in (output, labels)]
    raise ValueError(
        f"no loss is known for an output of {shapes[0]} and labels of {shapes[1]}: expected class indices, or numbers "
        "in the output's shape. Give the score its loss, as in score=Taylor(loss=...), or override `loss` of a "
        "callback that has one, and see that batches hold labels"
    )
