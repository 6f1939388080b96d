"""What random networks are made of: for each step, what it can be put on, its options, and its module.

A step is a name, what it takes, and options that JSON can hold. `options` picks them for given values; `module` builds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import nn

from tests.channels.grammar import modules as own

T = TypeVar("T")


class Value(NamedTuple):
    """A tensor in a network: its kind, and its shape without the batch.

    A "map" is [C, *space], "tokens" are [T, C], a "vector" is [C], "ids" are integers [T].
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        """How many channels it has."""
        return self.shape[-1] if self.kind == "tokens" else self.shape[0]

    @property
    def dim(self) -> int:
        """Their dim, the batch being dim 0."""
        return 2 if self.kind == "tokens" else 1


class Pick:
    """Where choices come from: subclasses choose one of some options."""

    def __call__(self, options: Sequence[T]) -> T:
        """One of them, the simplest of which stands first."""
        raise NotImplementedError


class Step(NamedTuple):
    """A kind of step.

    Attributes:
        takes: the kinds of its operands, alternatives separated by "|"; "=" is a value of the very shape of the first.
        options: (pick, values) -> options, or None where the step cannot be put on these.
        module: (values, **options) -> its module.
        gives: the kind of what comes out; "" for that of the first operand.
    """

    takes: tuple[str, ...]
    options: Callable[..., dict[str, Any] | None]
    module: Callable[..., nn.Module]
    gives: str = ""


Options = Callable[..., dict[str, Any] | None]
STEPS: dict[str, Step] = {}
WIDTHS = (4, 6, 8, 5, 9, 12)
BY = ("attribute", "shape", "literal")
ANY = "map|tokens|vector"


def _plain(*names: str, takes: tuple[str, ...] = (ANY,), gives: str = "") -> None:
    """Steps without options that are functions."""
    for name in names:
        STEPS[name] = Step(takes, lambda pick, *values: {}, lambda *values, name=name: own.Does(name), gives)


_plain("relu", "gelu", "silu", "sigmoid", "hardswish", "square", "one more", "flip")
_plain("softmax", takes=("map|vector",))
_plain("add", "mul", "max", takes=(ANY, "="))
_plain("mean", takes=("map",), gives="vector")
_plain("to tokens", takes=("map",), gives="tokens")
_plain("to map", takes=("tokens",), gives="map")
_plain("mean of tokens", "first", takes=("tokens",), gives="vector")
_plain("flatten", takes=("map|tokens",), gives="vector")


def step(*takes: str, build: Callable[..., nn.Module], gives: str = "") -> Callable[[Options], Options]:
    """Registers a function that picks options; `build` makes the module."""

    def register(options: Options) -> Options:
        STEPS[options.__name__.replace("_", " ")] = Step(takes, options, build, gives)
        return options

    return register


def divisors(*numbers: int) -> list[int]:
    """What divides all of them, from 2 on."""
    return [d for d in range(2, min(numbers) + 1) if all(n % d == 0 for n in numbers)]
