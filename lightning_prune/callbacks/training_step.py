"""Code of a callback around a module's ``training_step``, put on by a swap of the module's class and taken off again.

The step is a property of the swapped class, so a step that was set on the instance is wrapped as well, and copies and
pickles of the module have their own step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_prune.callbacks.method import PruningMethod
from lightning_prune.support.class_swap import data_key, recipe, restore, swap

_RECIPE = "training_step"
_AROUND, _STEP = data_key(_RECIPE), "training_step"

TrainOn = Callable[[Callable[[Any], Any], Any], Any]


@recipe(_RECIPE, copied=False)
def _stepping(base: type[LightningModule]) -> dict[str, Any]:
    inherited = next(vars(kind)[_STEP] for kind in base.__mro__ if _STEP in vars(kind))

    def own(self: LightningModule) -> Any:
        if _STEP in self.__dict__ and not isinstance(inherited, property):  # a swap below this one reads it itself
            return self.__dict__[_STEP]
        return inherited.__get__(self, base)

    def read(self: LightningModule) -> Any:
        return partial(_around, self.__dict__[_AROUND], own(self))

    def write(self: LightningModule, value: Any) -> None:
        self.__dict__[_STEP] = value

    def delete(self: LightningModule) -> None:
        del self.__dict__[_STEP]

    return {_STEP: property(read, write, delete)}


def _around(train_on: TrainOn, step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
    return train_on(lambda given: step(given, *args, **kwargs), batch)


def wrap_step(module: LightningModule, train_on: TrainOn) -> None:
    """Let ``train_on(step, batch)`` stand for ``training_step``; ``step(batch)`` is the module's own.

    Raises:
        NotImplementedError: the module optimizes by hand, so nothing reads the loss that its step returns.
    """
    check_automatic(module)
    swap(module, _RECIPE, data=train_on)


def unwrap_step(module: LightningModule) -> None:
    """Give a module its own step back; nothing happens where it has it."""
    restore(module, _RECIPE)


def hold_step(method: PruningMethod, module: LightningModule) -> None:
    """Put a method's own training step on the module where the phase asks for it, and off where it does not."""
    if method.owns_steps and (method.stage == "soft" or (method.stage == "pruned" and method.trains_to_the_end)):
        wrap_step(module, partial(method.train_on, module))
    else:
        unwrap_step(module)


def check_automatic(module: LightningModule) -> None:
    """Raise NotImplementedError for manual optimization: the loss that the step returns is not used there."""
    if not module.automatic_optimization:
        raise NotImplementedError(
            f"{type(module).__name__} optimizes by hand (automatic_optimization=False), and this method changes the "
            "loss that training_step returns, which nobody would read. Return the loss and leave the optimizer to "
            "Lightning."
        )


def loss_of(output: Any) -> Tensor | None:
    """The loss in what ``training_step`` returned: itself, the entry of a dict, or None where the step is skipped."""
    return output["loss"] if isinstance(output, dict) else output


def with_loss(output: Any, loss: Tensor) -> Any:
    """What ``training_step`` returned, with another loss."""
    return {**output, "loss": loss} if isinstance(output, dict) else loss
