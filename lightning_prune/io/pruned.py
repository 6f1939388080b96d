"""Save a pruned model to one plain file, and get it back: `save_pruned`, `load_pruned`, `pruned_state_dict`.

A file holds tensors, a timm name and keyword arguments, and of a compact model its pruning plan (see
`lightning_prune.io.sparsefile`). It is never unpickled and runs no code but the constructor of a timm model, and its
forward where a plan needs its graph rewritten. A file that is truncated, damaged or made to do harm raises
`PrunedFileError` before memory is taken for what it claims to hold.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import safetensors.torch
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_prune.errors import ChannelError, RecipeError
from lightning_prune.io import compact, sparsefile
from lightning_prune.io.bitmask import bits, encode, plain_zeros
from lightning_prune.io.describe import sparsity, versions
from lightning_prune.io.rebuild import build, build_meta, checked_recipe, first_difference, largest_dim
from lightning_prune.io.recipe import check_recipe, is_named, network_of
from lightning_prune.io.sparsefile import DTYPE_NAMES, fail, read_header, read_tensors
from lightning_prune.masks import is_attached


def save_pruned(
    model: nn.Module, path: str | Path, *, name: str | None = None, kwargs: Mapping[str, Any] | None = None
) -> Path:
    """Saves a model as one safetensors file in which sparse tensors take the room of their non-zeros.

    A compact model's pruning plan goes with it, so that the compact model comes back. Every bit does, but for the sign
    of zeros: -0.0, which ``weight * mask`` makes, is saved as +0.

    Args:
        model: a timm model; or a LightningModule whose parameters are all in one, under any name, which is saved
            without what stands around it (and without its name, with a warning, if timm could not rebuild it); or any
            other module, whose tensors alone are saved.
        path: the file to write. Folders above it are created; an existing file is replaced in one step.
        name: timm name to rebuild the model from. By default the model's own architecture and tag, or none.
        kwargs: keyword arguments of ``timm.create_model`` that the model was built with, plain JSON. They add to what
            the model tells of itself: the number of classes and input channels and, from timm 1.0.31 on, the rest.

    Returns:
        The path.

    Raises:
        PrunedFileError: if the path is a folder, a tensor cannot be stored, or a model rebuilt from the name and
            arguments would not have the same tensors (the message names the first that differs), or its masks are
            still on. Nothing is written.
    """
    path = Path(path)
    if path.is_dir():
        fail(path, "it is a folder", "Give the path of a file.")
    network = network_of(model)
    if is_attached(network):
        fail(path, "the model is being sparsified and its zeros are not in the weights yet", "Save it after fit.")
    state, aliases = _tensors(path, network)
    specs = {key: (tuple(t.shape), t.dtype) for key, t in (state | {k: state[a] for k, a in aliases.items()}).items()}
    try:
        own_plans = compact.plans_below(model, network)
        plans = compact.data_of_plans(own_plans)
        checked = compact.read_plans(plans, specs)
        try:
            name, arguments = checked_recipe(model, network, name, kwargs, specs, checked)
        except (RecipeError, ChannelError) as error:
            if name is not None or kwargs or is_named(model) or not isinstance(model, LightningModule):
                raise
            arguments = {}  # a user's own module, whose network was changed after timm built it
            remedy = "give kwargs= as for timm.create_model if there are any that build it, or load with model="
            warnings.warn(f"{path} is saved without a timm name ({error}): {remedy}.", stacklevel=2)
    except (RecipeError, ChannelError) as error:
        fail(path, str(error), "Pass kwargs= as they were given to timm.create_model (and name= if it is another).")

    entries: dict[str, Tensor] = {}
    described: dict[str, dict[str, Any]] = {}
    for key, tensor in state.items():
        packed = encode(tensor)
        if packed is None:
            entries[key] = tensor
        else:
            entries[key + sparsefile.MASK], entries[key + sparsefile.VALUES] = packed
        encoding = "dense" if packed is None else "sparse"
        described[key] = {"shape": list(tensor.shape), "dtype": DTYPE_NAMES[tensor.dtype], "encoding": encoding}
    info: dict[str, Any] = {
        "format": sparsefile.COMPACT_FORMAT if plans else sparsefile.FORMAT,
        "name": name,
        "kwargs": arguments,
        "versions": versions(),
        "sparsity": sparsity(network, own_plans),
        "tensors": described,
        "aliases": aliases,
    } | ({"plans": plans} if plans else {})
    info["sha256"] = sparsefile.digest(sparsefile.canonical(info), entries)
    metadata = {sparsefile.METADATA_KEY: json.dumps(info, allow_nan=False, separators=(",", ":"))}
    content = safetensors.torch.save(entries, metadata)
    if int.from_bytes(content[:8], "little") > sparsefile.MAX_HEADER_BYTES:
        fail(path, "the description of the model is too long for a file", "It has too many tensors, or kept channels.")
    _write(path, content)
    return path


def load_pruned(path: str | Path, model: nn.Module | None = None, *, device: str | torch.device = "cpu") -> nn.Module:
    """Loads what `save_pruned` wrote: the same model, bit for bit (zeros as +0), in train mode like a new one.

    Everything the file says is checked first: the header against the file's size, the content against its hash, the
    masks against the values, the name against timm's registry, the arguments against a list of what is allowed, and
    the pruning plan and the tensors against a model built without memory. No code but the timm constructor of that name
    runs, and its forward on fake tensors where the plan needs its graph rewritten.

    Args:
        path: the file.
        model: a module to fill instead of building one; needed for files saved without a timm name. Where the file
            has other floating-point widths, its parameters take them. For a file of a compact model: a dense module,
            which the plan is applied to, or one that is compact by the same plan.
        device: where the model goes.

    Returns:
        The model, on the device.

    Raises:
        PrunedFileError: if the file does not pass a check, or the model cannot hold its tensors.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    header = read_header(path)
    specs = {key: (spec.shape, spec.dtype) for key, spec in header.specs().items()}
    name, kwargs = header.info["name"], header.info["kwargs"]
    if model is None and name is None:
        fail(path, "it was saved without a timm name", "Pass model= a module to fill.")
    try:
        plans = compact.read_plans(header.info.get("plans", {}), specs)
        meta = None
        if model is None:
            check_recipe(name, kwargs, largest_dim(specs))
            meta = build_meta(name, kwargs, len(specs))
        network = network_of(model) if model is not None else meta
        assert network is not None
        plans = compact.pending(plans, network if model is None else model, network)
        difference = first_difference(network, specs, compact.cut_shapes(plans, network))
        if difference is not None:
            raise RecipeError(difference)
        if meta is not None and plans:
            compact.check_dense_size(meta, specs)
        state = read_tensors(path, header)
        if meta is not None:
            model = network = build(meta, name, kwargs)
        compact.apply_plans(plans, network)
    except (RecipeError, ChannelError) as error:
        fail(path, str(error), "Check the installed timm version, or pass model= a module that fits.")
    _fill(path, network, state)
    assert model is not None
    return model.to(device)


def pruned_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a file as an ordinary dense state_dict, for plain timm or anything else.

    Those of a compact model have its shapes: they fit a model that its plan was applied to.

    Args:
        path: a file that `save_pruned` wrote.

    Returns:
        Tensors on the CPU by key; keys that were tied in the saved model give the same tensor.

    Raises:
        PrunedFileError: if the file does not pass a check.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    return read_tensors(path, read_header(path))


def _tensors(path: Path, network: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Splits a state_dict into tensors (CPU, contiguous) and keys that are the very tensor of an earlier key."""
    state: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for key, tensor in network.state_dict().items():
        remedy = "Only plain dense tensors can be saved."
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or "::" in key:
            fail(path, f"{key!r} is not a plain tensor under a plain name", remedy)
        if tensor.dtype not in DTYPE_NAMES or tensor.is_meta:
            fail(path, f"tensor {key!r} is {tensor.dtype} on {tensor.device}", remedy)
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            aliases[key] = seen[place]
        else:
            seen[place] = key
            copy = plain_zeros(tensor.detach().cpu().contiguous())
            storage = copy.untyped_storage().data_ptr()
            # safetensors takes no two views of one storage
            state[key] = copy.clone() if storage in storages else copy
            storages.add(storage)
    return state, aliases


def _fill(path: Path, network: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies the tensors into a model of the same keys and shapes, and checks that it holds every bit of them."""
    for key, held in network.state_dict(keep_vars=True).items():
        if held.dtype != state[key].dtype:
            held.data = held.data.to(state[key].dtype)
    network.load_state_dict(state, strict=True)
    for key, held in network.state_dict().items():
        if not bits(held.cpu().contiguous()).equal(bits(state[key])):
            fail(path, f"the model does not hold tensor {key!r} as it was saved: it ties it to one that differs")


def _write(path: Path, content: bytes) -> None:
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
