"""The pruning plans of a compact model in a file: what is written, and what is checked before any of it is used.

A compact model is rebuilt dense, cut, and then filled. So a small file may ask for a large model, and a plan from a
file says which attributes of which modules to set and which inputs to trace: all of it is bounded here first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels.surgery.cut import apply_plan, check_fits
from lightning_prune.channels.trace.call import Options
from lightning_prune.errors import ChannelError, RecipeError
from lightning_prune.io.format.container import DTYPES
from lightning_prune.io.recipe import MAX_ITEMS, MAX_TEXT
from lightning_prune.plan import codec
from lightning_prune.plan.factor import name_of_part
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import plans_of
from lightning_prune.support.schema import as_json, is_list, is_object, is_text

Specs = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

MAX_PLANS = 16
MAX_INPUTS = 16
MAX_SETTINGS = 32
BEFORE = 64  # so many times may the stages of a plan keep what it leaves in the end
INPUT_BYTES = 64 * 2**20  # of the inputs to trace, and 4 times the tensors of the file
DENSE_BYTES = 512 * 2**20  # of the dense model, and 64 times the tensors of the file: a bitmask of zeros takes 1/32
INPUT_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


def plans_below(model: nn.Module, network: nn.Module) -> dict[str, PruningPlan]:
    """{path below the network: plan} of the compact parts of a network in a model; "" is the network itself.

    The record may stand on the network, on its parts, or on the model around it.

    Raises:
        RecipeError: a compact part lies inside another one.
    """
    at = next((path for path, module in model.named_modules() if module is network), "")
    found: dict[str, PruningPlan] = {}
    for path, plan in plans_of(model).items():
        inside = f"{path}.".startswith(f"{at}.") or not at
        around = at != path and (not path or at.startswith(f"{path}."))
        if not inside and not around:
            continue
        own = plan.below(at.removeprefix(f"{path}.") if path else at) if around else plan
        where = "" if around else path.removeprefix(at).removeprefix(".")
        within = next((p for p in found if not p or where.startswith(f"{p}.") or where == p), None)
        if within is not None:
            raise RecipeError(
                f"{path!r} was made compact by itself, and what is around it too: the order of the two is not known"
            )
        if own.cuts or own.factors:
            found[where] = own
    return found


def data_of_plans(plans: Mapping[str, PruningPlan]) -> dict[str, Any]:
    """Plans by path as plain data; RecipeError where one is not plain JSON."""
    try:
        return dict(as_json({path: codec.to_data(vars(plan)) for path, plan in plans.items()}))
    except ValueError as error:
        raise RecipeError(f"a pruning plan is not plain JSON ({error})") from None


def read_plans(data: Any, specs: Specs) -> dict[str, PruningPlan]:
    """Makes plans of what a file says, {path of the compact part: plan}, within bounds that its tensors set.

    Raises:
        RecipeError, PlanError: naming what is wrong.
    """
    if not is_object(data, most=MAX_PLANS):
        raise RecipeError(f"its pruning plans are not an object of at most {MAX_PLANS}")
    stages = [stage for plan in data.values() for stage in _stages(plan)]
    # equal lists are stored once, and each is as long as a dim of a tensor that is left
    left = 2 * sum(n for shape, _ in specs.values() if math.prod(shape) for n in shape)
    for kept, allowed in (([*data.values()], 4096 + left), (stages, 4096 + BEFORE * left)):
        indices = sum(map(_indices, kept))
        if indices > allowed:
            raise RecipeError(f"its pruning plans keep {indices} indices, more than its tensors can have ({allowed})")
    plans = {path: PruningPlan.from_data(plan) for path, plan in data.items()}
    for plan in plans.values():
        for stage in (plan, *plan.stages):
            _check_settings(stage)
            _check_inputs(stage, _bytes(specs))
    return plans


def _stages(plan: Any) -> list[Any]:
    found = plan.get("stages") if is_object(plan) else None
    return found if is_list(found) else []


def _indices(plan: Any) -> int:
    lists = plan.get("index_lists") if is_object(plan) else None
    return sum(len(entry) for entry in lists if is_list(entry)) if is_list(lists) else 0


def _bytes(specs: Specs) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in specs.values())


def _check_settings(plan: PruningPlan) -> None:
    if len(plan.settings) > MAX_SETTINGS:
        raise RecipeError(f"a pruning plan has {len(plan.settings)} settings, more than {MAX_SETTINGS}")
    for name, value in plan.settings.items():
        for item in value if is_list(value) else [value]:
            if not (item is None or isinstance(item, int | float) or is_text(item, MAX_TEXT)):
                raise RecipeError(f"the setting {name[:MAX_TEXT]!r} of a pruning plan is not short and plain")
        if is_list(value) and len(value) > MAX_ITEMS:
            raise RecipeError(f"the setting {name[:MAX_TEXT]!r} of a pruning plan has {len(value)} items")
    if not is_list(plan.settings.get("allow_inexact", []), lambda name: is_text(name, MAX_TEXT)):
        raise RecipeError("the setting 'allow_inexact' of a pruning plan is not a list of names")
    Options.of_plan(plan.settings)


def _check_inputs(plan: PruningPlan, tensors: int) -> None:
    """Bounds the batch that a rewritten graph is traced with. tensors: bytes of the file's tensors."""
    total = 0
    for shape, dtype in plan.inputs:
        if dtype not in INPUT_DTYPES:
            raise RecipeError(f"a pruning plan was traced with an input of dtype {dtype[:MAX_TEXT]!r}")
        if len(shape) > 16 or not all(0 < n < 2**48 for n in shape):
            raise RecipeError("a pruning plan was traced with an input of no valid shape")
        total += math.prod(shape) * INPUT_DTYPES[dtype].itemsize
    if len(plan.inputs) > MAX_INPUTS or total > INPUT_BYTES + 4 * tensors:
        raise RecipeError(
            f"a pruning plan was traced with {len(plan.inputs)} inputs of {total} bytes, more than "
            f"{INPUT_BYTES + 4 * tensors}: a smaller batch does as well"
        )


def pending(plans: Mapping[str, PruningPlan], model: nn.Module, network: nn.Module) -> dict[str, PruningPlan]:
    """The plans that a network in a model does not have behind it yet; RecipeError if a part is compact otherwise."""
    present = plans_below(model, network)
    remedy = "give it its dense shapes back first, with lightning_prune.plan_of(model).undo(model)"
    for path, own in present.items():
        if path not in plans:
            raise RecipeError(f"{path or 'the model'!r} is compact, but was dense when the file was saved; {remedy}")
        if not own.same_cut(plans[path]):
            raise RecipeError(f"{path or 'the model'!r} is compact by another pruning plan than the file's; {remedy}")
    return {path: plan for path, plan in plans.items() if path not in present}


def _part(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError:
        raise RecipeError(f"a pruning plan is for {path[:MAX_TEXT]!r}, which the model does not have") from None


Shapes = dict[str, dict[str, tuple[int, ...]]]


def cut_shapes(plans: Mapping[str, PruningPlan], network: nn.Module) -> Shapes:
    """{name below the network: {name after: shape after}} of what plans cut or factorise; the network does not change.

    Raises:
        RecipeError, PlanError: naming the first tensor or attribute that is not there, or not as the plan says.
    """
    shapes: Shapes = {}
    for path, plan in plans.items():
        part = _part(network, path)
        check_fits(plan, part)
        for stage in (plan, *plan.stages):
            _check_attributes(stage, part)
        own = {name: {name: cut.new_shape} for name, cut in plan.cuts.items()} | _factor_shapes(plan, part)
        start = f"{path}." if path else ""
        shapes |= {start + name: {start + n: s for n, s in after.items()} for name, after in own.items()}
    return shapes


def _factor_shapes(plan: PruningPlan, part: nn.Module) -> Shapes:
    """As `cut_shapes`, of the factorised layers, each under all of its names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in part.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    shapes: Shapes = {}
    for path, factor in plan.factors.items():
        layer = part.get_submodule(path)
        for name in names[layer]:
            shapes[f"{name}.weight"] = factor.shapes(name)
            if layer._parameters["bias"] is not None:
                shapes[f"{name}.bias"] = {name_of_part(name, "bias"): factor.shape[:1]}
    return shapes


def _check_attributes(plan: PruningPlan, part: nn.Module) -> None:
    """Lets through only what surgery does: a plain count of the module's own that becomes smaller."""
    modules = dict(part.named_modules())
    for path, changes in plan.attributes.items():
        for name, change in changes.items():
            what = f"attribute {name[:MAX_TEXT]!r} of {path[:MAX_TEXT]!r}"
            own = vars(modules[path]).get(name)
            values = [list(v) if isinstance(v, list | tuple) else [v] for v in (own, change.before, change.after)]
            if name.startswith("_") or not all(type(n) is int for v in values for n in v):
                raise RecipeError(f"a pruning plan changes {what}, which counts no channels")
            if len({len(v) for v in values}) > 1 or len(values[0]) > MAX_ITEMS:
                raise RecipeError(f"a pruning plan changes {what} to {len(values[2])} numbers from {len(values[0])}")
            if not all(0 <= after <= before for before, after in zip(values[1], values[2], strict=True)):
                raise RecipeError(f"a pruning plan changes {what} from {change.before} to {str(change.after)[:100]}")


def check_dense_size(meta: nn.Module, specs: Specs) -> None:
    """RecipeError unless the dense model, which has to be built first, is in proportion to what is left of it."""
    dense = sum(t.numel() * t.element_size() for t in meta.state_dict().values() if isinstance(t, Tensor))
    allowed = DENSE_BYTES + 64 * _bytes(specs)
    if dense > allowed:
        raise RecipeError(
            f"the dense model takes {dense} bytes, more than the {allowed} that a file of this size may ask for"
        )


def apply_plans(plans: Mapping[str, PruningPlan], network: nn.Module) -> None:
    """Makes a network compact, after `cut_shapes` has checked that the plans fit.

    RecipeError if a plan's graph cannot be traced and rewritten; that part is as it was.
    """
    for path, plan in plans.items():
        try:
            apply_plan(plan, _part(network, path), values=False)
        except ChannelError as error:
            raise RecipeError(f"the pruning plan cannot be applied: {error}") from error
        except Exception as error:  # tracing raises what it likes
            reason = f"{type(error).__name__}: {error}"
            raise RecipeError(f"the pruning plan cannot be applied ({reason[:300]})") from error
