"""Applies a plan to a model in place: all checks first, then only assignments."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.channels.surgery.empty import check_empty, empty_layers
from lightning_prune.channels.surgery.rewrite import Programs, build_from_plan, install
from lightning_prune.errors import PlanError
from lightning_prune.plan.cut import Change, Cut
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import Compact, remember
from lightning_prune.support.tensors import state_tensors, take, tensor_caches


def check_fits(plan: PruningPlan, model: nn.Module, *, after: bool = False) -> None:
    """Raises PlanError naming the first tensor or attribute that is not as the plan expects or (`after`) leaves it."""
    tensors, modules, kind = state_tensors(model), dict(model.named_modules()), type(model).__name__
    verb, remedy = "expects", "apply it to a fresh dense model of the same architecture"
    if after:
        verb, remedy = "leaves", "undo the very plan that was applied to this model"
    for name, cut in plan.cuts.items():
        if name not in tensors:
            raise PlanError(f"the plan cuts {name!r}, which {kind} does not have; was it made for another model?")
        found, wanted = tuple(tensors[name].shape), cut.new_shape if after else cut.shape
        if found != wanted:
            hint = " (the plan seems to be applied already)" if not after and found == cut.new_shape else ""
            raise PlanError(f"the plan {verb} {name} of shape {wanted}, {kind} has {found}{hint}; {remedy}")
        check_indices(name, cut)
    check_empty(plan, model)
    if plan.empty and plan.form == "graph":
        raise PlanError("the plan removes branches from a rewritten graph; only a model's own code can do that")
    for path, changes in plan.attributes.items():
        if path not in modules:
            raise PlanError(f"the plan changes module {path!r}, which {kind} does not have")
        for name, change in changes.items():
            value, expected = getattr(modules[path], name, None), change.after if after else change.before
            if not same_attribute(value, expected):
                raise PlanError(f"the plan {verb} {path}.{name} = {expected!r}, found {value!r}; {remedy}")


def check_indices(name: str, cut: Cut) -> None:
    """Raises PlanError if a cut keeps something that a tensor of its shape does not have."""
    for dim, indices in cut.kept.items():
        if not 0 <= dim < len(cut.shape):
            raise PlanError(f"the plan cuts dim {dim} of {name}, which has {len(cut.shape)} dims")
        if not indices:  # `check_empty` says whether it may be
            continue
        size = cut.shape[dim]
        within = len(indices) <= size and indices[0] >= 0 and indices[-1] < size
        if not within or any(a >= b for a, b in itertools.pairwise(indices)):
            raise PlanError(
                f"the plan keeps indices of dim {dim} of {name} that are not increasing numbers from 0 to {size - 1}"
            )


def same_attribute(found: Any, expected: Any) -> bool:
    """Compares attributes; lists and tuples are the same."""
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same_attribute, found, expected))
    return not isinstance(found, Tensor) and bool(found == expected)


def set_attributes(model: nn.Module, attributes: dict[str, dict[str, Change]], *, back: bool = False) -> None:
    """Sets every changed attribute, in the type that it has (or sets it back)."""
    modules = dict(model.named_modules())
    for path, changes in attributes.items():
        for name, change in changes.items():
            value = change.before if back else change.after
            if isinstance(value, (list, tuple)):
                kind = type(getattr(modules[path], name))
                value = kind(value) if kind in (list, tuple) else tuple(value)
            setattr(modules[path], name, value)


def find_target(plan: PruningPlan, model: nn.Module) -> nn.Module:
    """Returns the module that the plan is about: the model itself, or the only child that has all its tensors."""
    own = state_tensors(model)
    if plan.cuts.keys() <= own.keys():
        return model
    # Only a path that ends in a tensor of the plan can lead to the child that the plan is about.
    first = next(iter(plan.cuts))
    children = [model.get_submodule(name.removesuffix(f".{first}")) for name in own if name.endswith(f".{first}")]
    fitting = [child for child in children if plan.cuts.keys() <= state_tensors(child).keys()]
    return fitting[0] if len(fitting) == 1 else model  # check_fits names the first tensor that is missing


def check_optimizers(plan: PruningPlan, target: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Raises PlanError for an optimizer whose state cannot be sliced with its parameter."""
    tensors = state_tensors(target)
    for optimizer in optimizers:
        for name in plan.cuts:
            p = tensors[name]
            for key, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor) and value.ndim > 0 and value.numel() > 1 and value.shape != p.shape:
                    raise PlanError(
                        f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name} of shape "
                        f"{tuple(p.shape)}: expected the parameter's own shape. Prune before the first step with "
                        "this optimizer, or use one whose state has the parameter's shape"
                    )


def tensors_to_cut(plan: PruningPlan, target: nn.Module) -> Iterator[tuple[str, Tensor, Cut]]:
    """Iterates over (a name, tensor, cut): tensors with several names once."""
    tensors = state_tensors(target)
    done: set[int] = set()
    for name, cut in plan.cuts.items():
        if id(tensors[name]) not in done:
            done.add(id(tensors[name]))
            yield name, tensors[name], cut


def cut_tensors(plan: PruningPlan, target: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Slices parameters, their gradients, buffers and optimizer state. Everything was checked before."""
    with torch.no_grad():
        for _, tensor, cut in tensors_to_cut(plan, target):
            for optimizer in optimizers:
                state = optimizer.state.get(tensor, {})
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.shape == cut.shape:
                        state[key] = take(value, cut.kept)
            grad, tensor.grad = tensor.grad, None  # a gradient of the old shape may not stay
            tensor.data = take(tensor.data, cut.kept)
            if 0 in cut.new_shape and tensor.requires_grad:
                tensor.requires_grad_(False)  # DDP waits for the gradient of whatever says that it has one
            elif grad is not None:
                tensor.grad = take(grad, cut.kept)


def clear_caches(target: nn.Module) -> None:
    """Empties the dicts of tensors that some layers cache in eval mode: they were computed from the dense weights."""
    for module in target.modules():
        for _, cache in tensor_caches(module):
            cache.clear()


def apply_plan(
    plan: PruningPlan, model: nn.Module, optimizers: Iterable[Optimizer] = (), averaged: Iterable[nn.Module] = (),
    programs: Programs | None = None, folds: dict[str, Tensor] | None = None,
) -> nn.Module:  # fmt: skip
    """See `PruningPlan.apply`.

    Args:
        programs: the rewritten graphs of `model`, if they are at hand.
        folds: {tensor name: what to add to it before slicing}, constants of the channels that go.
    """
    optimizers = list(optimizers)
    targets = [find_target(plan, m) for m in (model, *averaged)]
    for target in targets:
        check_fits(plan, target)
    check_optimizers(plan, targets[0], optimizers)
    records = [Compact.after(target, plan) for target in targets]  # copies what is about to be cut
    built: list[Programs] = []
    if plan.form == "graph":
        built = [programs if programs and i == 0 else build_from_plan(plan, t) for i, t in enumerate(targets)]
    for i, target in enumerate(targets):
        with torch.no_grad():
            tensors = state_tensors(target)
            for name, delta in (folds or {}).items():
                tensors[name].add_(delta.to(tensors[name]))
        cut_tensors(plan, target, optimizers if i == 0 else ())
        set_attributes(target, plan.attributes)
        empty_layers(target, plan.empty)
        clear_caches(target)
        for module in target.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # cuDNN wants them in one piece, and warns at every call
        if plan.form == "graph":
            install(target, built[i])
        remember(target, records[i])
    return model
