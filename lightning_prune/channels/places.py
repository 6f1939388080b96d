"""The plain data that a channel graph is made of: members of classes, and places in the code that count channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.fx import Node


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
    """An integer in the model's code that counts channels. `classes` has one entry for each channel it counts."""

    node: Node
    module: str
    kind: str
    argument: str
    position: int | None
    value: int
    classes: Tensor


@dataclass(frozen=True)
class Sum:
    """A place where channels are summed over. `classes` has one entry for each channel in dim `dim` of an argument."""

    node: Node
    argument: str
    dim: int
    classes: Tensor


@dataclass(frozen=True)
class Product:
    """A share of a call's multiplications, proportional to the channels that are left in each of `classes`."""

    node: Node
    share: float
    classes: tuple[Tensor, ...]


@dataclass(frozen=True)
class Pick:
    """Channels picked by the numbers in a constant, which an input of the graph holds.

    `before` has one class for each channel of the tensor, `after` one for each number.
    """

    placeholder: str
    numbers: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Parts:
    """The parts of a split into equal parts; each tensor has one entry for each channel of a part."""

    node: Node
    module: str
    parts: tuple[Tensor, ...]
