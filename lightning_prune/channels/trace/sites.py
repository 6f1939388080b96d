"""The plain data of a channel graph: members of channel groups, and places in the code that depend on channels.

The vectors of a place hold one number for each channel: its label while the rules run, then its group id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.fx import Node


def module_path(node: Node) -> tuple[str, str]:
    """Returns (path, class name) of the innermost module whose forward made this call."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    name = kind if isinstance(kind, str) else kind.__name__
    return path.split("@")[0], name.rsplit(".", 1)[-1]


class Member(NamedTuple):
    """Indices along one dim of one tensor of the state dict."""

    tensor: str
    dim: int
    indices: tuple[int, ...]


class Frozen(NamedTuple):
    """Indices along one dim of one tensor that stay, with the reasons."""

    tensor: str
    dim: int
    indices: tuple[int, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """An integer of a call that counts channels: a split size, a slice bound, a view size, a number of groups.

    After surgery the integer is the number of its channels that are left.

    Attributes:
        module: path of the module that makes the call.
        argument: the argument's name in the operator's schema.
        position: its place when the argument is a list, else None.
        value: the integer while tracing.
    """

    node: Node
    module: str
    argument: str
    position: int | None
    value: int
    ids: Tensor


@dataclass(frozen=True)
class Denominator:
    """A number that a call divides by, and reads off the channels that come in: once some go, it has to be told.

    The statistics of a norm are over all of its channels, the default scale of attention is by the dims of a head.

    Attributes:
        module: path of the module that makes the call.
        value: the number while tracing.
    """

    node: Node
    module: str
    value: int
    ids: Tensor


@dataclass(frozen=True)
class Sum:
    """A place where channels are summed over. `ids` has one entry for each channel in dim `dim` of an argument."""

    node: Node
    argument: str
    dim: int
    ids: Tensor


@dataclass(frozen=True)
class Product:
    """A share of a call's multiplications, proportional to the channels that are left in each of `ids`."""

    node: Node
    share: float
    ids: tuple[Tensor, ...]


@dataclass(frozen=True)
class Pick:
    """Channels picked by the numbers in a constant, which an input of the graph holds.

    `before` has one group for each channel of the tensor, `after` one for each number.
    """

    placeholder: str
    numbers: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Parts:
    """A split into equal parts (`chunk`, `split(size)`): eager code can express it only while the parts stay equal."""

    node: Node
    parts: tuple[Tensor, ...]
