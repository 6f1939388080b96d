"""Applies a plan to a model in place: all checks first, then only assignments."""

from __future__ import annotations

import copy
import logging
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.channels.surgery.denominators import check_denominators, hold_denominators
from lightning_prune.channels.surgery.empty import check_empty, empty_layers
from lightning_prune.channels.surgery.factored import check_factors_fit, dense_shapes, factorize_layers
from lightning_prune.channels.surgery.rewrite import Programs, build_from_plan, install, programs_of
from lightning_prune.errors import PlanError
from lightning_prune.plan.cut import Change, Cut
from lightning_prune.plan.plan import PruningPlan, check_factors
from lightning_prune.plan.record import Compact, remember
from lightning_prune.support.tensors import state_tensors, take, tensor_caches

log = logging.getLogger(__name__)


def check_fits(plan: PruningPlan, model: nn.Module, *, after: bool = False) -> None:
    """Raises PlanError naming the first tensor or attribute that is not as the plan expects or (`after`) leaves it."""
    modules, kind = dict(model.named_modules()), type(model).__name__
    shapes = {name: tuple(tensor.shape) for name, tensor in state_tensors(model).items()}
    check_factors(plan.factors, plan.form)
    if after:
        shapes |= dense_shapes(plan.factors, model)
    verb, remedy = "expects", "apply it to a fresh dense model of the same architecture"
    if after:
        verb, remedy = "leaves", "undo the very plan that was applied to this model"
    for name, cut in plan.cuts.items():
        if name not in shapes:
            raise PlanError(f"the plan cuts {name!r}, which {kind} does not have; was it made for another model?")
        found, wanted = shapes[name], cut.new_shape if after else cut.shape
        if found != wanted:
            hint = " (the plan seems to be applied already)" if not after and found == cut.new_shape else ""
            raise PlanError(f"the plan {verb} {name} of shape {wanted}, {kind} has {found}{hint}; {remedy}")
        check_indices(name, cut)
    check_empty(plan, model)
    check_denominators(plan, model)
    if plan.empty and plan.form == "graph":
        raise PlanError("the plan removes branches from a rewritten graph; only a model's own code can do that")
    for path, changes in plan.attributes.items():
        if path not in modules:
            raise PlanError(f"the plan changes module {path!r}, which {kind} does not have")
        for name, change in changes.items():
            value, expected = getattr(modules[path], name, None), change.after if after else change.before
            if not same_attribute(value, expected):
                raise PlanError(f"the plan {verb} {path}.{name} = {expected!r}, found {value!r}; {remedy}")
    if not after:
        check_factors_fit(plan.factors, shapes | {name: cut.new_shape for name, cut in plan.cuts.items()}, model)


def check_indices(name: str, cut: Cut) -> None:
    """Raises PlanError if a cut keeps something that a tensor of its shape does not have."""
    for dim, indices in cut.kept.items():
        if not 0 <= dim < len(cut.shape):
            raise PlanError(f"the plan cuts dim {dim} of {name}, which has {len(cut.shape)} dims")
        if not indices:  # `check_empty` says whether it may be
            continue
        size = cut.shape[dim]
        within = len(indices) <= size and indices[0] >= 0 and indices[-1] < size
        if not within or not all(map(operator.lt, indices, indices[1:])):
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
    wanted = {*plan.cuts, *(f"{path}.weight" for path in plan.factors)}
    if wanted <= own.keys():
        return model
    # Only a path that ends in a tensor of the plan can lead to the child that the plan is about.
    first = min(wanted)
    children = [model.get_submodule(name.removesuffix(f".{first}")) for name in own if name.endswith(f".{first}")]
    fitting = [child for child in children if wanted <= state_tensors(child).keys()]
    return fitting[0] if len(fitting) == 1 else model  # check_fits names the first tensor that is missing


def state_cut(cut: Cut, shape: Sequence[int], key: str) -> dict[int, tuple[int, ...]] | None:
    """What is kept of a tensor that an optimizer has for a parameter: {dim: indices}; None if that cannot be told.

    The tensor has the parameter's dims, each whole or of size 1, or lacks one of them (factored second moments, Shazeer
    & Stern 2018, arXiv 1804.04235: rows lack the later of two dims, columns the other).

    Args:
        cut: of the parameter.
        shape: of the optimizer's tensor.
        key: its name, which tells a row from a column where the shape does not.
    """
    full = cut.shape
    if len(shape) == len(full):
        if any(size not in (1, whole) for size, whole in zip(shape, full, strict=True)):
            return None
        return {dim: kept for dim, kept in cut.kept.items() if shape[dim] == full[dim]}
    lacks = [d for d in range(len(full)) if tuple(shape) == (*full[:d], *full[d + 1 :])]
    if "row" in key or "col" in key:
        lacks = lacks[-1:] if "row" in key else lacks[:1]
    found = [{dim - (dim > d): kept for dim, kept in cut.kept.items() if dim != d} for d in lacks]
    return found[0] if found and all(other == found[0] for other in found) else None


def cut_state(optimizer: Optimizer, param: Tensor, name: str, cut: Cut) -> None:
    """Slices what an optimizer keeps for a parameter; what cannot be sliced is dropped, and begins anew."""
    state = optimizer.state.get(param, {})
    for key, value in list(state.items()):
        if not isinstance(value, Tensor) or value.numel() <= 1:
            continue
        kept = state_cut(cut, value.shape, key)
        if kept is None:
            del optimizer.state[param]
            log.warning(
                "%s keeps %r of shape %s for %s of shape %s, which cannot be sliced: its state of this parameter "
                "begins anew", type(optimizer).__name__, key, tuple(value.shape), name, cut.shape,
            )  # fmt: skip
            return
        state[key] = take(value, kept)


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
    tuples = {id(kept): kept for cut in plan.cuts.values() for kept in cut.kept.values()}  # most are of several tensors
    indices = {key: torch.tensor(kept, dtype=torch.int64) for key, kept in tuples.items()}
    with torch.no_grad():
        for name, tensor, cut in tensors_to_cut(plan, target):
            kept = {dim: indices[id(kept)] for dim, kept in cut.kept.items()}
            for optimizer in optimizers:
                cut_state(optimizer, tensor, name, cut)
            grad, tensor.grad = tensor.grad, None  # a gradient of the old shape may not stay
            tensor.data = take(tensor.data, kept)
            if 0 in cut.new_shape and tensor.requires_grad:
                tensor.requires_grad_(False)  # DDP waits for the gradient of whatever says that it has one
            elif grad is not None:
                tensor.grad = take(grad, kept)


def clear_caches(target: nn.Module) -> None:
    """Empties the dicts of tensors that some layers cache in eval mode: they were computed from the dense weights."""
    for module in target.modules():
        for _, cache in tensor_caches(module):
            cache.clear()


def _build(plan: PruningPlan, model: nn.Module) -> Programs:
    """The rewritten graphs of a dense model: in one step, or in the plan's stages where its ties forbid that."""
    try:
        return build_from_plan(plan, model)
    except PlanError:
        if not plan.stages:
            raise
    small = copy.deepcopy(model)
    for stage in plan.stages:
        apply_plan(stage, small, values=False)
    return programs_of(small)


def apply_plan(
    plan: PruningPlan, model: nn.Module, optimizers: Iterable[Optimizer] = (), averaged: Iterable[nn.Module] = (),
    programs: Programs | None = None, folds: dict[str, Tensor] | None = None, values: bool = True,
) -> nn.Module:  # fmt: skip
    """See `PruningPlan.apply`.

    Args:
        programs: the rewritten graphs of `model`, if they are at hand.
        folds: {tensor name: what to add to it before slicing}, constants of the channels that go.
        values: whether factorised layers get the factors of their weights; else zeros, for whoever loads others.
    """
    optimizers = list(optimizers)
    targets = [find_target(plan, m) for m in (model, *averaged)]
    for target in targets:
        check_fits(plan, target)
    records = [Compact.after(target, plan) for target in targets]  # copies what is about to be cut
    built: list[Programs] = []
    if plan.form == "graph":
        built = [programs if programs and i == 0 else _build(plan, t) for i, t in enumerate(targets)]
    for i, target in enumerate(targets):
        with torch.no_grad():
            tensors = state_tensors(target) if folds else {}
            for name, delta in (folds or {}).items():
                tensors[name].add_(delta.to(tensors[name]))
        cut_tensors(plan, target, optimizers if i == 0 else ())
        set_attributes(target, plan.attributes)
        empty_layers(target, plan.empty)
        if plan.form == "eager":  # a rewritten graph has them written into it
            hold_denominators(target, plan.denominators)
        factorize_layers(plan.factors, target, optimizers if i == 0 else (), targets[0] if i else None, values)
        clear_caches(target)
        for module in target.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # cuDNN wants them in one piece, and warns at every call
        if plan.form == "graph":
            install(target, built[i])
        remember(target, records[i])
    return model
