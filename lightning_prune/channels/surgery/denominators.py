"""Norms and attention that go on to divide by a number of channels that they no longer have.

The class of the module is swapped, in copies and pickles too, for one that runs the module's own code, in which the
calls of PyTorch's norms and of its attention get that number. So every class will do that calls them, whatever it does
around them, and nothing is put on the object.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_prune.channels.graph.propagate import bind, operator_name
from lightning_prune.channels.surgery.empty import emptied
from lightning_prune.channels.trace.sites import Denominator
from lightning_prune.errors import PlanError
from lightning_prune.functional.norms.compensated import OPERATORS
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.swap.class_swap import is_swapped, recipe, restore, swap

_RECIPE = "denominator"
_MOST = 1 << 24  # channels that a plan may name


def is_norm(module: nn.Module) -> bool:
    """Whether a module's denominator is that of its statistics."""
    return _size(module) is not None


class _Inside(TorchFunctionMode):
    """Inside, some functions are replaced by others, which get a number before their arguments."""

    def __init__(self, count: int, calls: Mapping[Any, Callable[..., Tensor]]) -> None:
        super().__init__()
        self.count, self.calls = count, calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        own = self.calls.get(func)
        return func(*args, **kwargs) if own is None else own(self.count, *args, **kwargs)


def _attention(dims: int, *args: Any, **kwargs: Any) -> Tensor:
    """Without a scale, that of ``dims`` dims in a head."""
    given = kwargs.get("scale")
    return F.scaled_dot_product_attention(*args, **{**kwargs, "scale": dims**-0.5 if given is None else given})


def _layer_norm(
    total: int, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, *_: Any,
) -> Tensor:  # fmt: skip
    """Of `F.layer_norm` and of `torch.layer_norm`, which has one more argument."""
    out: Tensor = OPERATORS["layer_norm"](input, list(normalized_shape), weight, bias, eps, total)
    return out


def _rms_norm(
    total: int, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    out: Tensor = OPERATORS["rms_norm"](input, list(normalized_shape), weight, eps, total)
    return out


def _group_norm(
    total: int, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, *_: Any,
) -> Tensor:  # fmt: skip
    out: Tensor = OPERATORS["group_norm"](input, num_groups, weight, bias, eps, total)
    return out


_NORMS: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
}
_ATTENTION: dict[Any, Callable[..., Tensor]] = {F.scaled_dot_product_attention: _attention}


@recipe(_RECIPE, copied=True)
def _counting(base: type[nn.Module], norm: bool, count: int) -> dict[str, Any]:
    calls = _NORMS if norm else _ATTENTION

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Inside(count, calls):
            return base.forward(self, *args, **kwargs)

    return {"forward": forward, "__doc__": f"{base.__name__} that divides by {count} channels."}


def hold_denominators(model: nn.Module, counts: Mapping[str, int]) -> None:
    """Makes modules divide by these numbers: {path: number}."""
    for path, count in counts.items():
        module = model.get_submodule(path)
        swap(module, _RECIPE, is_norm(module), count)


def release_denominators(model: nn.Module, counts: Mapping[str, int]) -> None:
    """Makes modules count for themselves again."""
    for path in counts:
        restore(model.get_submodule(path), _RECIPE)


def is_counting(module: nn.Module) -> bool:
    """Whether a module divides by a number that was told to it."""
    return is_swapped(module, _RECIPE)


@contextlib.contextmanager
def standing_in(model: nn.Module, plan: PruningPlan) -> Iterator[None]:
    """Inside, whatever a plan needs to run in place of modules' own code does; after, modules are what they were."""
    fresh = {p: n for p, n in plan.denominators.items() if not is_counting(model.get_submodule(p))}
    with emptied(model, plan):
        try:
            hold_denominators(model, fresh)
            yield
        finally:
            release_denominators(model, fresh)


def check_denominators(plan: PruningPlan, model: nn.Module) -> None:
    """Raises PlanError unless what a plan names is there, and all norms that it cuts go on to count what they had.

    Only the model's names, classes and attributes are looked at.
    """
    modules = dict(model.named_modules())
    for path, count in plan.denominators.items():
        if path not in modules:
            raise PlanError(f"the plan divides by {count} at {path!r:.200}, which {type(model).__name__} does not have")
        size = _size(modules[path])
        # A norm that was cut before counts more than it has.
        if count > _MOST or (size is not None and count < size):
            raise PlanError(
                f"the plan divides by {count} at {path}, a norm of {size} channels; expected at least those"
            )
    for path, changes in plan.attributes.items():
        # A cut GroupNorm has as many channels in each group as before, or as many groups.
        shrunk = "normalized_shape" in changes or ("num_channels" in changes and "num_groups" not in changes)
        if shrunk and path not in plan.denominators and path in modules and is_norm(modules[path]):
            raise PlanError(
                f"the plan cuts {path} and does not say what its statistics are divided by; prune the dense model again"
            )


def _size(module: Any) -> int | None:
    """The channels of a norm."""
    if hasattr(module, "normalized_shape"):
        return int(module.normalized_shape[-1])
    return int(module.num_channels) if hasattr(module, "num_groups") and hasattr(module, "num_channels") else None


def denominators_of(places: list[Denominator], cut: Callable[[Tensor], bool]) -> dict[str, int]:
    """{path: number} of the calls that lose channels; cut: whether some of these groups go."""
    return {place.module: place.value for place in places if cut(place.ids)}


def tell_call(place: Denominator) -> None:
    """Rewrites a call in a graph so that it divides by the number that it divided by."""
    node, name = place.node, operator_name(place.node.target)
    given = bind(node.target, node.args, node.kwargs)
    if name in OPERATORS:
        node.target = call = OPERATORS[name]
        names = [a.name for a in call._schema.arguments][:-1]
        node.args, node.kwargs = (*(given[n] for n in names), place.value), {}
    elif name == "scaled_dot_product_attention":
        node.kwargs = {**node.kwargs, "scale": place.value**-0.5}
