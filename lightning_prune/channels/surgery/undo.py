"""The way back from a compact model to its dense shapes: the inverse of `surgery.apply_plan`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_prune.channels.surgery.cut import check_fits, clear_caches, find_target, set_attributes, tensors_to_cut
from lightning_prune.channels.surgery.denominators import release_denominators
from lightning_prune.channels.surgery.empty import fill
from lightning_prune.channels.surgery.factored import merge_layers
from lightning_prune.channels.surgery.rewrite import uninstall
from lightning_prune.errors import PlanError
from lightning_prune.plan.cut import Cut
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import Compact, remember
from lightning_prune.support.tensors import like_format


def put_back(tensor: Tensor, cut: Cut, elsewhere: float = 0.0) -> Tensor:
    """A new tensor of the cut's shape, in the same memory format: entries where they were, and `elsewhere`."""
    out = tensor
    for dim, indices in cut.kept.items():
        shape = [cut.shape[d] if d == dim else size for d, size in enumerate(out.shape)]
        index = torch.tensor(indices, dtype=torch.int64, device=tensor.device)
        out = out.new_full(shape, elsewhere).index_copy_(dim, index, out)
    return like_format(out, tensor)


def undo_plan(plan: PruningPlan, model: nn.Module) -> nn.Module:
    """See `PruningPlan.undo`."""
    records = {part: record for part in model.modules() if (record := Compact.on(part)) is not None}
    target = next((part for part, record in records.items() if record.plan.same_cut(plan)), None)
    if target is None and records:
        raise PlanError(
            "the model was made compact by another plan, or by more than this one; "
            "undo all of it with lightning_prune.plan_of(model).undo(model)"
        )
    target = find_target(plan, model) if target is None else target
    check_fits(plan, target, after=True)
    merge_layers(plan.factors, target)
    _restore_tensors(plan, target)
    set_attributes(target, plan.attributes, back=True)
    clear_caches(target)
    fill(target, plan.empty)
    release_denominators(target, plan.denominators)
    uninstall(target)
    if target in records:
        records[target].restore(target)
    remember(target, None)
    return model


def _restore_tensors(plan: PruningPlan, target: nn.Module) -> None:
    """Gives parameters, their gradients and buffers their dense shapes. Everything was checked before."""
    with torch.no_grad():
        for name, tensor, cut in tensors_to_cut(plan, target):
            grad, tensor.grad = tensor.grad, None  # a gradient of the old shape may not stay
            tensor.data = put_back(tensor.data, cut, 1.0 if name.endswith("running_var") else 0.0)
            if grad is not None:
                tensor.grad = put_back(grad, cut)
