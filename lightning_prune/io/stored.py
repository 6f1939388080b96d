"""What `load_pruned` is given, a file or a folder, behind one face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_prune.io.folder import HUB, LOCAL, download, open_folder
from lightning_prune.io.format.container import fail
from lightning_prune.io.format.sparsefile import read_header, read_tensors


@dataclass(frozen=True)
class Stored:
    """A saved model whose description was checked.

    Attributes:
        path: the file or folder.
        info: what it says of itself: name, kwargs, versions, sparsity, plans, ...
        specs: {key: shape and dtype} of every tensor.
        read: reads them.
        size: bytes that it takes.
        data: timm's fields on how images are prepared and what the classes are called.
    """

    path: Path
    info: dict[str, Any]
    specs: dict[str, tuple[tuple[int, ...], torch.dtype]]
    read: Callable[[], dict[str, Tensor]]
    size: int
    data: dict[str, Any] = field(default_factory=dict)


def open_stored(path: str | Path) -> Stored:
    """Checks what a file or folder says of itself.

    Raises:
        PrunedFileError: a check fails.
        FileNotFoundError: there is no such file or folder.
    """
    if isinstance(path, str) and path.startswith(HUB):
        path = download(path.removeprefix(HUB))
    elif isinstance(path, str):
        path = Path(path.removeprefix(LOCAL))
    if "\0" in str(path):
        fail(repr(str(path)), "it is no path", "Give the path of a file or folder.")
    if path.is_dir():
        folder = open_folder(path)
        return Stored(path, folder.info, dict(folder.weights.entries), folder.read, folder.size, folder.data)
    header = read_header(path)
    specs = {key: (spec.shape, spec.dtype) for key, spec in header.specs().items()}
    return Stored(path, header.info, specs, lambda: read_tensors(header), path.stat().st_size)
