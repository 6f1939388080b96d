"""From a timm name and keyword arguments to a model, without trusting either.

A name and arguments that come from a file are data that choose what code runs: which constructor, with which sizes.
`check_recipe` lets through only registered names and small plain values, and `build_meta` builds on the meta device,
where tensors have shapes and no memory, with a limit on how many modules and tensors may come to be. What the result
would need can then be compared with what the file holds before anything is allocated.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

__all__ = ["RecipeError", "build", "build_meta", "check_recipe", "first_difference", "plain_kwargs"]

MAX_JSON_BYTES = 64 * 2**10
MAX_ITEMS = 256  # of one list or object
MAX_DEPTH = 6
MAX_TEXT = 256
MAX_INT = 8192  # or the greatest dimension of the file's tensors, if that is more; image sizes are in no shape

# Arguments of create_model and build_model_with_cfg that read files, reach the network, or leave the meta device.
FORBIDDEN = frozenset(
    {
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_filter_fn",
        "pretrained_model_args",
        "pretrained_strict",
        "checkpoint_path",
        "cache_dir",
        "scriptable",
        "exportable",
        "no_jit",
        "pruned",
        "device",
        "dtype",
    }
)


class RecipeError(ValueError):
    """The name or the arguments are not fit to build a model from; the message says which and why."""


def plain_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments as they come back from JSON (tuples are lists).

    Raises:
        RecipeError: naming the first argument that is not plain JSON.
    """
    out = {}
    for key, value in kwargs.items():
        try:
            out[key] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"the argument {key}={value!r} is not plain JSON ({error})") from None
    return out


def _check_value(key: str, value: Any, max_int: int, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise RecipeError(f"the argument {key!r} is nested too deeply")
    if isinstance(value, list | dict):
        if len(value) > MAX_ITEMS:
            raise RecipeError(f"the argument {key!r} has {len(value)} items, more than {MAX_ITEMS}")
        if isinstance(value, dict):
            for inner in value:
                _check_key(inner)
        for item in value.values() if isinstance(value, dict) else value:
            _check_value(key, item, max_int, depth + 1)
    elif isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise RecipeError(f"the argument {key!r} is a text of {len(value)} characters, more than {MAX_TEXT}")
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if abs(value) > max_int:
            raise RecipeError(f"the argument {key!r} holds a number above {max_int}, larger than any tensor there")
    elif not isinstance(value, float) or not math.isfinite(value):
        raise RecipeError(f"the argument {key!r} is not plain JSON")


def _check_key(key: Any) -> None:
    if not isinstance(key, str) or not key.isidentifier() or len(key) > MAX_TEXT:
        raise RecipeError("an argument has no valid name")
    if key in FORBIDDEN:
        raise RecipeError(f"the argument {key!r} is not allowed: it does not describe an architecture")


def check_recipe(name: Any, kwargs: Any, largest_dim: int) -> None:
    """Checks that a name is timm's and that its arguments are small and plain.

    Args:
        name: what to call; an architecture, or architecture and tag, of timm's registry.
        kwargs: its arguments.
        largest_dim: the greatest dimension among the tensors the model is to hold.

    Raises:
        RecipeError: if anything is not allowed.
    """
    import timm

    import lightning_prune.models  # noqa: F401  registers this package's own

    if not isinstance(name, str) or len(name) > MAX_TEXT or not name.replace(".", "_").isidentifier():
        raise RecipeError("the model's name is not a timm name (a source such as hf-hub: or local-dir: is not allowed)")
    if not timm.is_model(name):
        raise RecipeError(f"timm {timm.__version__} has no model {name!r}")
    if not isinstance(kwargs, dict):
        raise RecipeError("the model's arguments are not an object")
    for key, value in kwargs.items():
        _check_key(key)
        _check_value(key, value, max(MAX_INT, largest_dim))
    if len(kwargs) > MAX_ITEMS or len(json.dumps(kwargs)) > MAX_JSON_BYTES:
        raise RecipeError("the model's arguments are too long")


@contextmanager
def _limit(registrations: int) -> Iterator[None]:
    """Stops a build in this thread that registers more modules, parameters and buffers than that."""
    thread, count = threading.get_ident(), 0

    def tick(*_: Any) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > registrations:
                raise RecipeError(f"the arguments ask for a model of more than {registrations} parts")

    with ExitStack() as stack:
        for register in (
            hooks.register_module_module_registration_hook,
            hooks.register_module_parameter_registration_hook,
            hooks.register_module_buffer_registration_hook,
        ):
            stack.callback(register(tick).remove)
        yield


def _create(name: str, kwargs: dict[str, Any]) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
    except RecipeError:
        raise
    except Exception as error:  # constructors raise what they like
        reason = f"{type(error).__name__}: {error}"
        raise RecipeError(f"timm cannot build {name!r} with these arguments ({reason[:300]})") from error
    return model


def build_meta(name: str, kwargs: dict[str, Any], tensors: int) -> nn.Module:
    """Builds a checked recipe on the meta device: modules and shapes, no weights.

    Args:
        name: timm name that passed `check_recipe`.
        kwargs: its arguments.
        tensors: how many tensors the model should have; a build of far more stops early.

    Raises:
        RecipeError: if timm cannot build it, or it grows too large.
    """
    # real models register at most 6 things per tensor; small ones need some room
    with _limit(20 * tensors + 10_000), torch.device("meta"):
        return _create(name, kwargs)


def _unsaved_bytes(model: nn.Module) -> int:
    """Bytes of tensors that a model holds outside its state_dict."""
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    held = [tensor for module in model.modules() for tensor in (*vars(module).values(), *module._buffers.values())]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor) and id(t) not in saved)


def build(meta: nn.Module, name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Builds the model for real. Only after its meta twin was found to have the tensors expected.

    The twin cannot simply be given memory: that would leave tensors outside the state_dict uninitialised.

    Raises:
        RecipeError: if the model would hold far more outside its state_dict than in it, or cannot be built.
    """
    inside = sum(t.numel() * t.element_size() for t in meta.state_dict().values())
    outside = _unsaved_bytes(meta)
    if outside > 4 * inside + 64 * 2**20:
        raise RecipeError(f"the arguments ask for {outside} bytes of tensors that are not in the file")
    return _create(name, kwargs)


def first_difference(model: nn.Module, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> str | None:
    """Compares a model's state_dict with the tensors it is to be filled with.

    Floating-point widths may differ, since a model can be converted after it is built.

    Args:
        model: a model, on any device.
        tensors: shape and dtype by key.

    Returns:
        A sentence about the first key, in the model's order, that differs; None if all fit.
    """
    state = model.state_dict()
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            return f"{key!r} is no tensor in the model"
        if key not in tensors:
            return f"tensor {key!r} of the model is not among those saved"
        shape, dtype = tensors[key]
        if tuple(tensor.shape) != shape:
            return f"tensor {key!r} has shape {tuple(tensor.shape)} in the model, but {shape} was saved"
        if tensor.dtype != dtype and not (tensor.dtype.is_floating_point and dtype.is_floating_point):
            return f"tensor {key!r} is {tensor.dtype} in the model, but {dtype} was saved"
    extra = next((key for key in tensors if key not in state), None)
    return None if extra is None else f"tensor {extra!r} was saved, but the model has none of that name"
