"""From a timm name and keyword arguments to a model, in two steps.

`build_meta` builds on the meta device, where tensors have shapes and no memory, with a limit on how many modules and
tensors may come to be. What the result would need can then be compared with what a file holds (`first_difference`)
before `build` allocates anything.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from lightning_prune.errors import RecipeError
from lightning_prune.io.compact import Specs, check_dense_size, cut_shapes
from lightning_prune.io.recipe import check_recipe, plain_kwargs, recipe_of
from lightning_prune.plan.plan import PruningPlan


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


class _NoRandomStart(TorchFunctionMode):
    """Parameters get no random values while a model is built: they are about to be filled, and that takes longest."""

    _DRAWS = (
        Tensor.normal_, Tensor.uniform_, Tensor.erfinv_,  # the last is a step of truncated normals
        nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_,  # those that a mode sees in place of their steps
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._DRAWS:
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, nn.Parameter):
                return filled
        return func(*args, **kwargs)


def _create(name: str, kwargs: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
        return model
    except RecipeError:
        raise
    except Exception as error:  # constructors raise what they like
        reason = f"{type(error).__name__}: {error}"
        raise RecipeError(f"timm cannot build {name!r} with these arguments ({reason[:300]})") from error


def build_meta(name: str, kwargs: dict[str, Any], tensors: int) -> nn.Module:
    """Builds a recipe that passed `check_recipe` on the meta device: modules and shapes, no weights.

    ``tensors`` is how many it should have: a build of far more stops early.

    Raises:
        RecipeError: if timm cannot build it, or it grows too large.
    """
    # real models register at most 6 things per tensor; small ones need some room
    with _limit(20 * tensors + 5_000), torch.device("meta"), _NoRandomStart():
        return _create(name, kwargs)


def build(meta: nn.Module, name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Builds the model for real, its parameters to be filled. Only after its meta twin had the tensors expected.

    The twin cannot simply be given memory: that would leave tensors outside the state_dict uninitialised.

    Raises:
        RecipeError: if the model would hold far more outside its state_dict than in it, or cannot be built.
    """
    inside = sum(t.numel() * t.element_size() for t in meta.state_dict().values())
    saved = {id(tensor) for tensor in meta.state_dict(keep_vars=True).values()}
    held = [tensor for module in meta.modules() for tensor in (*vars(module).values(), *module._buffers.values())]
    outside = sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor) and id(t) not in saved)
    if outside > 4 * inside + 64 * 2**20:
        raise RecipeError(f"the arguments ask for {outside} bytes of tensors that are not in the file")
    with _NoRandomStart():
        return _create(name, kwargs)


def first_difference(
    model: nn.Module, tensors: Specs, cuts: Mapping[str, Mapping[str, tuple[int, ...]]] = MappingProxyType({})
) -> str | None:
    """A sentence about the first key, in the model's order, that differs from the tensors to fill it with, or None.

    Floating-point widths may differ, since a model can be converted after it is built.

    Args:
        tensors: shape and dtype by key.
        cuts: {key: {key: shape}} of what tensors of the model will be once it is made compact.
    """
    compact: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            return f"{name!r} is no tensor in the model"
        compact |= {key: (shape, tensor.dtype) for key, shape in cuts.get(name, {name: tuple(tensor.shape)}).items()}
    for key, (found, own) in compact.items():
        if key not in tensors:
            return f"tensor {key!r} of the model is not among those saved"
        shape, dtype = tensors[key]
        if found != shape:
            return f"tensor {key!r} has shape {found} in the {'compact ' if cuts else ''}model, but {shape} was saved"
        if own != dtype and not (own.is_floating_point and dtype.is_floating_point):
            return f"tensor {key!r} is {own} in the model, but {dtype} was saved"
    extra = next((key for key in tensors if key not in compact), None)
    return None if extra is None else f"tensor {extra!r} was saved, but the model has none of that name"


def largest_dim(specs: Specs) -> int:
    """The greatest dimension of the tensors that have elements: one of an empty tensor proves nothing."""
    return max((n for shape, _ in specs.values() if math.prod(shape) for n in shape), default=0)


def checked_recipe(
    model: nn.Module, network: nn.Module, name: str | None, kwargs: Mapping[str, Any] | None, specs: Specs,
    plans: Mapping[str, PruningPlan],
) -> tuple[str | None, dict[str, Any]]:  # fmt: skip
    """The timm name (or None) and arguments that rebuild a network, from what was given and what the model tells.

    Raises:
        RecipeError, ChannelError: they would not rebuild it.
    """
    own_name, own_kwargs = recipe_of(model, network)
    if name is not None and name.split(".")[0] != (own_name or "").split(".")[0]:
        own_kwargs = {}  # what the model tells is about another architecture
    name = name or own_name
    arguments = plain_kwargs({**own_kwargs, **(kwargs or {})})
    if name is not None:
        check_recipe(name, arguments, largest_dim(specs))
        meta = build_meta(name, arguments, len(specs))
        difference = first_difference(meta, specs, cut_shapes(plans, meta))
        if difference is not None:
            raise RecipeError(f"a rebuilt {name!r} differs: {difference}")
        if plans:
            check_dense_size(meta, specs)
    elif arguments:
        raise RecipeError("kwargs were given but no name, and the model has none of its own")
    return name, arguments
