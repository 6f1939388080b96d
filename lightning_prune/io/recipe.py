"""The timm name and keyword arguments a model was built from: asked of the model, or read from a file and checked.

What comes from a file is data that chooses which constructor runs, with which sizes. `check_recipe` lets through only
registered names and small plain values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import timm
from lightning.pytorch import LightningModule
from torch import nn

from lightning_prune.errors import RecipeError
from lightning_prune.support.network import holders, is_a
from lightning_prune.support.schema import as_json, is_list, is_object, is_text

MAX_JSON_BYTES = 64 * 2**10
MAX_ITEMS = 256  # of one list or object
MAX_DEPTH = 6
MAX_TEXT = 256
MAX_INT = 8192  # or the greatest dimension of the file's tensors, if that is more; image sizes are in no shape

# Arguments of create_model and build_model_with_cfg that read files, reach the network, or leave the meta device.
FORBIDDEN = frozenset({
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_filter_fn", "pretrained_model_args",
    "pretrained_strict", "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "pruned",
    "device", "dtype",
})  # fmt: skip


def plain_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as they come back from JSON (tuples are lists); RecipeError naming the first that is not plain."""
    out = {}
    for key, value in kwargs.items():
        try:
            out[key] = as_json(value)
        except ValueError as error:
            raise RecipeError(f"the argument {key}={value!r} is not plain JSON ({error})") from None
    return out


def _check_value(key: str, value: Any, max_int: int, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise RecipeError(f"the argument {key!r} is nested too deeply")
    if is_list(value) or is_object(value):
        if len(value) > MAX_ITEMS:
            raise RecipeError(f"the argument {key!r} has {len(value)} items, more than {MAX_ITEMS}")
        for inner in value if is_object(value) else ():
            _check_key(inner)
        for item in value.values() if is_object(value) else value:
            _check_value(key, item, max_int, depth + 1)
    elif isinstance(value, str):
        if not is_text(value, MAX_TEXT):
            raise RecipeError(f"the argument {key!r} is a text of {len(value)} characters, more than {MAX_TEXT}")
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if abs(value) > max_int:
            raise RecipeError(f"the argument {key!r} holds a number above {max_int}, larger than any tensor there")
    elif not isinstance(value, float) or not math.isfinite(value):
        raise RecipeError(f"the argument {key!r} is not plain JSON")


def _check_key(key: Any) -> None:
    if not is_text(key, MAX_TEXT) or not key.isidentifier():
        raise RecipeError("an argument has no valid name")
    if key in FORBIDDEN:
        raise RecipeError(f"the argument {key!r} is not allowed: it does not describe an architecture")


def check_recipe(name: Any, kwargs: Any, largest_dim: int) -> None:
    """Checks that a name (architecture, or architecture and tag) is timm's and that its arguments are small and plain.

    ``largest_dim`` is the greatest dimension among the tensors the model is to hold.

    Raises:
        RecipeError: if anything is not allowed.
    """
    if not is_text(name, MAX_TEXT) or not name.replace(".", "_").isidentifier():
        raise RecipeError("the model's name is not a timm name (a source such as hf-hub: or local-dir: is not allowed)")
    if not timm.is_model(name):
        raise RecipeError(f"timm {timm.__version__} has no model {name!r}")
    if not is_object(kwargs):
        raise RecipeError("the model's arguments are not an object")
    for key, value in kwargs.items():
        _check_key(key)
        _check_value(key, value, max(MAX_INT, largest_dim))
    if len(kwargs) > MAX_ITEMS or len(json.dumps(kwargs)) > MAX_JSON_BYTES:
        raise RecipeError("the model's arguments are too long")


def _config(network: nn.Module) -> dict[str, Any]:
    config = getattr(network, "pretrained_cfg", None)
    return config if isinstance(config, dict) else {}


def _timm_name(network: nn.Module) -> str:
    """The architecture and tag that a network tells, or nothing."""
    config = _config(network)
    # the tag decides nothing about the shapes, but the loaded model's mean and std come with it
    return ".".join(part for part in (config.get("architecture"), config.get("tag")) if part)


def is_named(model: nn.Module) -> bool:
    """Whether it is a module such as `TimmClassifier`, which tells the timm name of its ``.model``."""
    named = getattr(getattr(model, "hparams", None), "model_name", None) is not None
    return named and isinstance(getattr(model, "model", None), nn.Module)


def network_of(model: nn.Module) -> nn.Module:
    """The module whose tensors are the file's: the network of a LightningModule, and what torch.compile wrapped.

    That is the ``.model`` of one with ``.hparams.model_name``; of any other LightningModule, the timm model on the way
    down to the innermost child that holds all parameters. Without one, and for all other modules, it is the module.
    """
    if is_named(model):
        model = model.get_submodule("model")
    elif is_a(model, LightningModule):
        model = next((child for child in holders(model) if _timm_name(child)), model)
    original = getattr(model, "_orig_mod", model)
    return original if isinstance(original, nn.Module) else model


def recipe_of(model: nn.Module, network: nn.Module) -> tuple[str | None, dict[str, Any]]:
    """What a model tells of how it was built: timm name (or None) and keyword arguments."""
    hparams = getattr(model, "hparams", None) if model is not network else None
    config, name = _config(network), _timm_name(network) or getattr(hparams, "model_name", "")
    if not name:
        return None, {}
    arguments = dict(getattr(network, "_model_args", {}))
    if hasattr(timm.models, "get_model_args"):  # timm >= 1.0.31 also follows reset_classifier and set_input_size
        arguments.update(timm.models.get_model_args(network))
    arguments.update(getattr(hparams, "model_kwargs", None) or {})
    for key in ("num_classes", "in_chans"):
        value = getattr(network, key, getattr(hparams, key, None))
        if value is not None:
            arguments[key] = value
    if "in_chans" not in arguments and isinstance(config.get("first_conv"), str):
        first = network.get_submodule(config["first_conv"])
        if isinstance(first, nn.Conv2d):
            arguments["in_chans"] = first.in_channels
    return name, {key: value for key, value in arguments.items() if key not in FORBIDDEN}
