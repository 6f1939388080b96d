"""What a score of channels says, and the registry of those that have a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from lightning_prune.channels.select.taps import Tap
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.scoring.loss import task_loss
from lightning_prune.support.near import did_you_mean

Loss = Callable[[Any, "Tensor | None"], Tensor]
Needs = Literal["weights", "activations", "gradients", "weight gradients"]


class Score:
    """Importance of channel groups; the highest stay. A subclass gives `of_layer`, and what else differs.

    What `of_layer` gives of each layer and batch is averaged over batches (and ranks), then `combine` makes one value
    a group of it.

    Attributes:
        needs: what it looks at. "weights" need no data; "activations" are what enters the layers that sum over the
            channels (see `ChannelUnits.taps`), in eval mode, and "gradients" those of the loss by them too;
            "weight gradients" are those by the weights.
        reduce: how the values of a group's channels combine, see `ChannelUnits.aggregate`.
        by: how layers are made comparable, see `ChannelUnits.normalize`; None: they are as they are.
        loss: (network's output, labels) → a scalar, for what needs gradients.
    """

    needs: ClassVar[Needs] = "weights"
    reduce: ClassVar[str] = "mean"
    by: ClassVar[Literal["mean", "norm"] | None] = "mean"
    loss: Loss = staticmethod(task_loss)

    def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor | None:
        """Values of a layer's channels, on one batch.

        Args:
            x: a weight, filters along dim 0, [C, ...]; or an activation, samples first, [N, C, ...]. Detached.
            gradient: of the loss by it, in its shape, where the score needs it.

        Returns:
            [C], or None where a layer like this has no value: its channels stay unless another layer has one.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what a channel is worth: override of_layer.")

    def of_tap(self, tap: Tap, x: Tensor, gradient: Tensor | None = None) -> Tensor | None:
        """`of_layer` for a score of activations or gradients that needs to know who reads the channels: ``tap``."""
        return self.of_layer(x, gradient)

    def of_weights(self, units: ChannelUnits) -> Mapping[str, Tensor]:
        """{name, as `ChannelUnits.aggregate` takes it: values}, of a score that needs weights alone."""
        found = {name: self.of_layer(weight.detach()) for name, weight in units.weights().items()}
        return {name: value for name, value in found.items() if value is not None}

    def of_batch(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """From the values of all layers on one batch, {name: [C]}, to what is averaged over batches."""
        return values

    def combine(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Tensor:
        """From the averages to importance: float64 [groups], +inf for groups that stay."""
        score = units.aggregate(values, self.reduce)
        return score if self.by is None else units.normalize(score, self.by)

    def means(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """{name of a tap: means of its channels [C]} that the biases behind take over for channels that go."""
        return {}


class GradientScore(Score):
    """A score of gradients, whose loss can be given.

    Args:
        loss: (network's output, labels) → a scalar, a mean over the batch.
    """

    needs: ClassVar[Needs] = "gradients"

    def __init__(self, loss: Loss = task_loss) -> None:
        self.loss = loss


class Given(Score):
    """A function of the units as a score; it has the last word on how layers compare."""

    def __init__(self, function: Callable[[ChannelUnits], Tensor]) -> None:
        self.function = function

    def of_weights(self, units: ChannelUnits) -> Mapping[str, Tensor]:
        return {}

    def combine(self, units: ChannelUnits, values: Mapping[str, Tensor]) -> Tensor:
        return self.function(units)


ScoreLike = str | Score | Callable[[ChannelUnits], Tensor]
_SCORES: dict[str, Callable[[], Score]] = {}
_Class = TypeVar("_Class", bound=type[Score])


def register(name: str, **options: Any) -> Callable[[_Class], _Class]:
    """Gives a class of scores a name, with these options of its constructor."""

    def decorate(cls: _Class) -> _Class:
        _SCORES[name] = partial(cls, **options)
        return cls

    return decorate


def score_names() -> list[str]:
    """The names of all scores."""
    return sorted(_SCORES)


def find_score(given: ScoreLike) -> Score:
    """A score by its name, by itself, or made of a function ``units -> [groups]``.

    Raises:
        ValueError: there is no score of that name.
        TypeError: it is none of these.
    """
    if isinstance(given, str):
        if given not in _SCORES:
            raise ValueError(f"score={given!r} is none of {score_names()}. {did_you_mean(given, _SCORES)}".rstrip())
        return _SCORES[given]()
    if isinstance(given, Score):
        return given
    if callable(given):
        return Given(given)
    raise TypeError(f"score={given!r}: expected a name ({', '.join(score_names())}), a Score or a function of units.")
