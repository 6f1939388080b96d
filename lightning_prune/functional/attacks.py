"""Projected gradient descent in the maximum norm: adversarial examples for training and for measuring robustness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PGD:
    """PGD (Madry et al. 2018, arXiv 1706.06083): ``x ← clip(x + step·sign(∇L))``, within ``eps`` of the start.

    The defaults are those of ANP-VS on CIFAR in training; its tests take 40 steps.

    Args:
        eps: largest change of a value, in the units of the network's input.
        step: change in one step.
        steps: gradient steps.
        bounds: least and greatest value of an input, such as (0.0, 1.0); None: any.

    Raises:
        ValueError: an argument out of its range.
    """

    eps: float = 0.03
    step: float = 0.007
    steps: int = 10
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.eps <= 0 or self.step <= 0 or self.steps < 1:
            raise ValueError(
                f"eps={self.eps}, step={self.step}, steps={self.steps}: an attack needs positive numbers, such as "
                "eps=0.03, step=0.007, steps=10."
            )
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds={self.bounds} must be the least and the greatest value, such as (0.0, 1.0).")

    def __call__(self, loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor | None = None) -> Tensor:
        """Adversarial examples for ``x``, of its shape, detached.

        Args:
            loss: what to raise, a scalar of inputs of x's shape.
            x: inputs [N, ...], floating point.
            start: first change, in units of eps, in [−1, 1] and of x's shape; None: none.
        """
        x = x.detach()
        found = x if start is None else self._within(x, x + self.eps * start)
        for _ in range(self.steps):
            found = found.detach().requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(loss(found), found)
            found = self._within(x, found.detach() + self.step * grad.sign())
        return found

    def _within(self, x: Tensor, moved: Tensor) -> Tensor:
        moved = torch.minimum(torch.maximum(moved, x - self.eps), x + self.eps)
        return moved if self.bounds is None else moved.clamp(*self.bounds)
