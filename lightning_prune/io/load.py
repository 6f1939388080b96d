"""Load what was saved: `load_pruned`, `pruned_state_dict`, `pruned_info`.

A file or folder is never unpickled and runs no code but the constructor of a timm model, and its forward where a plan
needs its graph rewritten. What is truncated, damaged or made to do harm raises `PrunedFileError` before memory is taken
for what it claims to hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.errors import ChannelError, RecipeError
from lightning_prune.io import compact
from lightning_prune.io.format.bitmask import bits
from lightning_prune.io.format.container import fail
from lightning_prune.io.rebuild import build, build_meta, first_difference, largest_dim
from lightning_prune.io.recipe import check_recipe, network_of
from lightning_prune.io.stored import Stored, open_stored


def load_pruned(path: str | Path, model: nn.Module | None = None, *, device: str | torch.device = "cpu") -> nn.Module:
    """Loads what `save_pruned` or `save_pretrained` wrote: the same model, bit for bit (zeros as +0), in train mode.

    Everything that is read is checked first: the header against the file's size, the content against its hash, the
    masks against the values, the name against timm's registry, the arguments against a list of what is allowed, and
    the pruning plan and the tensors against a model built without memory. No code but the timm constructor of that name
    runs, and its forward on fake tensors where the plan needs its graph rewritten.

    Args:
        path: the file; or the folder of `save_pretrained`; or ``"hf-hub:owner/name"``, with ``@revision`` if wanted, to
            download such a folder.
        model: a module to fill instead of building one; needed for files saved without a timm name. Where the file
            has other floating-point widths, its parameters take them. For a file of a compact model: a dense module,
            which the plan is applied to, or one that is compact by the same plan.
        device: where the model goes.

    Returns:
        The model, on the device.

    Raises:
        PrunedFileError: if the file or folder does not pass a check, or the model cannot hold its tensors.
        FileNotFoundError: if there is no such file or folder.
    """
    stored = open_stored(path)
    specs, name, kwargs = stored.specs, stored.info["name"], stored.info["kwargs"]
    if model is None and name is None:
        fail(stored.path, "it was saved without a timm name", "Pass model= a module to fill.")
    try:
        plans = compact.read_plans(stored.info.get("plans", {}), specs)
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
        state = stored.read()
        if meta is not None:
            model = network = build(meta, name, kwargs)
            _tell_data(model, stored)
        compact.apply_plans(plans, network)
    except (RecipeError, ChannelError) as error:
        fail(stored.path, str(error), "Check the installed timm version, or pass model= a module that fits.")
    _fill(stored.path, network, state)
    assert model is not None
    return model.to(device)


def pruned_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a file or folder as an ordinary dense state_dict, for plain timm or anything else.

    Those of a compact model have its shapes: they fit a model that its plan was applied to.

    Args:
        path: what `load_pruned` takes.

    Returns:
        Tensors on the CPU by key; keys that were tied in the saved model give the same tensor.

    Raises:
        PrunedFileError: if the file or folder does not pass a check.
        FileNotFoundError: if there is no such file or folder.
    """
    return open_stored(path).read()


def pruned_info(path: str | Path) -> dict[str, Any]:
    """What a file or folder says of the model in it, without its tensors.

    Args:
        path: what `load_pruned` takes.

    Returns:
        ``name`` and ``kwargs`` for timm; ``versions`` of what wrote it; ``sparsity`` (prunable, zeros, sparsity,
        compression, and of a compact model removed: numbers of weights); ``compact`` and ``bytes`` (of the file, or of
        the folder's weights and plan); ``values``: None, or of narrowed weights what they are stored as and the
        relative error that this made; ``compression`` and ``format``.

    Raises:
        PrunedFileError: if the file or folder does not pass a check.
        FileNotFoundError: if there is no such file or folder.
    """
    stored = open_stored(path)
    told = {key: value for key, value in stored.info.items() if key not in ("plans", "sha256")}
    absent = {"values": None, "compression": None}
    return absent | told | {"compact": bool(stored.info.get("plans")), "bytes": stored.size}


def _tell_data(model: nn.Module, stored: Stored) -> None:
    """Hands on how images are prepared and what the classes are called, where timm keeps that."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict):
        config.update(stored.data)


def _fill(path: Path, network: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies the tensors into a model of the same keys and shapes, and checks that it holds every bit of them."""
    for key, held in network.state_dict(keep_vars=True).items():
        if held.dtype != state[key].dtype:
            held.data = held.data.to(state[key].dtype)
    network.load_state_dict(state, strict=True)
    for key, held in network.state_dict().items():
        if not bits(held.cpu().contiguous()).equal(bits(state[key])):
            fail(path, f"the model does not hold tensor {key!r} as it was saved: it ties it to one that differs")
