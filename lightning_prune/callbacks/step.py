"""One optimizer step, as a method sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.callbacks.trainer import thaws_later


def trained_by(optimizers: Iterable[Optimizer]) -> Callable[[Tensor], bool]:
    """Whether a parameter trains now: it needs a gradient, and one of the optimizers holds it, if there are any."""
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    return lambda p: p.requires_grad and (not held or id(p) in held)


def may_train(trainer: Trainer) -> Callable[[Tensor], bool]:
    """Whether a parameter trains or may do so later in a fit: an optimizer holds it, or a callback may hand it to one.

    A module that adds frozen parameters to an optimizer by hand, in a hook of its own, is not foreseen.
    """
    held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    return lambda p: not held or id(p) in held or thaws_later(trainer)


@dataclass(frozen=True)
class Step:
    """A step of one of the user's optimizers.

    Attributes:
        optimizer: the one that steps.
        logged: whether the logger writes this step.
    """

    optimizer: Optimizer
    logged: bool = False

    @cached_property
    def _rates(self) -> dict[int, float | Tensor]:
        return {id(p): g["lr"] for g in self.optimizer.param_groups for p in g["params"]}

    def holds(self, param: Tensor) -> bool:
        """Whether the optimizer holds a parameter."""
        return id(param) in self._rates

    def rate(self, param: Tensor) -> float:
        """The learning rate of a parameter; 0 if the optimizer does not hold it."""
        return float(self._rates.get(id(param), 0.0))
