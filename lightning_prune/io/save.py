"""Save a pruned model to one plain file: `save_pruned`.

A file holds tensors, a timm name and keyword arguments, and of a compact model its pruning plan. It is laid out in
`lightning_prune.io.format.packed`, and read by `lightning_prune.io.load`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_prune.errors import ChannelError, RecipeError
from lightning_prune.io import compact
from lightning_prune.io.describe import sparsity, versions
from lightning_prune.io.format import packed, zstd
from lightning_prune.io.format.bitmask import plain_zeros
from lightning_prune.io.format.container import DTYPE_NAMES, MAX_HEADER_BYTES, fail
from lightning_prune.io.format.narrow import STORED
from lightning_prune.io.rebuild import checked_recipe
from lightning_prune.io.recipe import is_named, network_of
from lightning_prune.masks import is_attached
from lightning_prune.support.network import is_a


def save_pruned(
    model: nn.Module,
    path: str | Path,
    *,
    name: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    values: str | None = None,
    compress: str | None = None,
) -> Path:
    """Saves a model as one safetensors file in which sparse tensors take the room of their non-zeros.

    A compact model's pruning plan goes with it, so that the compact model comes back. Every bit does, but for the sign
    of zeros: -0.0, which ``weight * mask`` makes, is saved as +0; and but for what `values` narrows.

    Args:
        model: a timm model; or a LightningModule whose parameters are all in one, under any name, which is saved
            without what stands around it (and without its name, with a warning, if timm could not rebuild it); or any
            other module, whose tensors alone are saved.
        path: the file to write. Folders above it are created; an existing file is replaced in one step.
        name: timm name to rebuild the model from. By default the model's own architecture and tag, or none.
        kwargs: keyword arguments of ``timm.create_model`` that the model was built with, plain JSON. They add to what
            the model tells of itself: the number of classes and input channels and, from timm 1.0.31 on, the rest.
        values: None keeps the bits of all values. "float16" and "int8" store the weights of two or more dims in fewer,
            int8 with one scale per output channel; they come back in the model's own dtype, with an error that is
            recorded in the file (``pruned_info(path)["values"]``).
        compress: "zstd" makes the file smaller still, and needs the extra of that name here and where it is read.

    Returns:
        The path.

    Raises:
        PrunedFileError: if the path is a folder, a tensor cannot be stored, or a model rebuilt from the name and
            arguments would not have the same tensors (the message names the first that differs), or its masks are
            still on, or an option is unknown or needs an extra. Nothing is written.
    """
    path = Path(path)
    if path.is_dir():
        fail(path, "it is a folder", "Give the path of a file, or use save_pretrained for a folder.")
    if values is not None and values not in STORED:
        fail(path, f"values={values!r} is unknown", f"Choose one of {', '.join(map(repr, STORED))}, or None.")
    if compress not in (None, "zstd"):
        fail(path, f"compress={compress!r} is unknown", "Choose 'zstd' or None.")
    content = Content.of(model, path, name, kwargs)
    try:
        raw = packed.write(content.state, content.aliases, content.plans, content.description(), values, compress)
    except ImportError:
        fail(path, "compress='zstd' takes the package zstandard", zstd.REMEDY)
    except ValueError as error:
        fail(path, str(error), "Save it with values=None, or without what is too much.")
    if int.from_bytes(raw[:8], "little") > MAX_HEADER_BYTES:
        fail(path, "the description of the model is too long for a file", "Give fewer or shorter kwargs.")
    write_file(path, raw)
    return path


@dataclass(frozen=True)
class Content:
    """What is saved of a model, found to rebuild it.

    Attributes:
        network: the module whose tensors these are.
        state: {key: tensor on the CPU, contiguous, without -0.0}.
        aliases: {key: the key whose tensor it shares}.
        plans: {path below the network: pruning plan} as plain data; empty of a model that is not compact.
        name, kwargs: what ``timm.create_model`` takes, None and {} if it is not a timm model.
        sparsity: the report's totals.
    """

    network: nn.Module
    state: dict[str, Tensor]
    aliases: dict[str, str]
    plans: dict[str, Any]
    name: str | None
    kwargs: dict[str, Any]
    sparsity: dict[str, float | int | None]

    @staticmethod
    def of(model: nn.Module, path: Path, name: str | None, kwargs: Mapping[str, Any] | None) -> Content:
        """Takes a model apart. path: where it goes to, for messages.

        Raises:
            PrunedFileError: as `save_pruned`.
        """
        network = network_of(model)
        if is_attached(network):
            fail(path, "the model is being sparsified and its zeros are not in the weights yet", "Save it after fit.")
        state, aliases = _tensors(path, network)
        everything = state | {key: state[target] for key, target in aliases.items()}
        specs = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in everything.items()}
        try:
            own_plans = compact.plans_below(model, network)
            plans = compact.data_of_plans(own_plans)
            checked = compact.read_plans(plans, specs)
            try:
                name, arguments = checked_recipe(model, network, name, kwargs, specs, checked)
            except (RecipeError, ChannelError) as error:
                if name is not None or kwargs or is_named(model) or not is_a(model, LightningModule):
                    raise
                arguments = {}  # a user's own module, whose network was changed after timm built it
                remedy = "give kwargs= as for timm.create_model if there are any that build it, or load with model="
                warnings.warn(f"{path} is saved without a timm name ({error}): {remedy}.", stacklevel=3)
        except (RecipeError, ChannelError) as error:
            fail(path, str(error), "Pass kwargs= as they were given to timm.create_model (and name= if it is another).")
        return Content(network, state, aliases, plans, name, arguments, sparsity(network, own_plans))

    def description(self) -> dict[str, Any]:
        """The fields that tell what the model is."""
        return {
            "format": packed.FORMAT,
            "name": self.name,
            "kwargs": self.kwargs,
            "versions": versions(),
            "sparsity": self.sparsity,
        }


def _tensors(path: Path, network: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Splits a state_dict into tensors (CPU, contiguous) and keys that are the very tensor of an earlier key."""
    state: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for key, tensor in network.state_dict().items():
        remedy = "Only plain dense tensors can be saved."
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            fail(path, f"{key!r} is not a plain tensor", remedy)
        if tensor.dtype not in DTYPE_NAMES or tensor.is_meta:
            fail(path, f"tensor {key!r} is {tensor.dtype} on {tensor.device}", remedy)
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            aliases[key] = seen[place]
        else:
            seen[place] = key
            state[key] = plain_zeros(tensor.detach().cpu().contiguous())
    return state, aliases


def write_file(path: Path, content: bytes) -> None:
    """Writes a file so that its name never stands for half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
