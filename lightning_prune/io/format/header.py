"""What is known of a file once its header is checked, whatever its format."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_prune.io.format.container import Bytes, Container

METADATA_KEY = "lightning_prune"


@dataclass(frozen=True)
class TensorSpec:
    """What a file says of one tensor.

    Attributes:
        shape, dtype: of the tensor, as it comes back.
        nonzero: how many elements are stored of a sparse one; None of a dense one.
        stored: dtype of the stored elements, if it is a narrower one.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    nonzero: int | None = None
    stored: torch.dtype | None = None

    @property
    def sparse(self) -> bool:
        """Whether it is stored as a bitmask and values."""
        return self.nonzero is not None

    @property
    def numel(self) -> int:
        """Number of elements; a Python integer, which cannot overflow."""
        return math.prod(self.shape)

    @property
    def scaled(self) -> bool:
        """Whether the stored integers are times a scale per index of the first dim."""
        return self.stored is torch.int8


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        info: the description's fields (format, name, kwargs, versions, sparsity, plans, ...).
        tensors: {key: specification}, in the model's order.
        aliases: {key: the key whose tensor it shares}.
        read: reads every tensor but the aliases, dense.
    """

    info: dict[str, Any]
    tensors: dict[str, TensorSpec]
    aliases: dict[str, str]
    read: Callable[[], dict[str, Tensor]]

    def specs(self) -> dict[str, TensorSpec]:
        """The specification of every key, aliases included."""
        return self.tensors | {key: self.tensors[target] for key, target in self.aliases.items()}


def canonical(info: dict[str, Any]) -> bytes:
    """Writes a description in the one form that is hashed."""
    return json.dumps(info, sort_keys=True, separators=(",", ":")).encode()


def digest(text: bytes, *parts: Bytes) -> str:
    """Hashes the canonical description (without its hash) and what follows it."""
    sha256 = hashlib.sha256(text)
    for part in parts:
        sha256.update(part.data)
    return sha256.hexdigest()


def digest_of_entries(text: bytes, container: Container, data: Bytes) -> str:
    """The hash of formats 1 and 2: the description, and each entry in the order of the names."""
    return digest(text, *(container.raw(data, name) for name in sorted(container.entries)))
