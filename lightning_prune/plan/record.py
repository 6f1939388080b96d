"""What a compact module remembers: the one plan that leads from the dense model to it.

It is an ordinary attribute, outside parameters, buffers and the state dict, so copies and pickles have it too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_prune.errors import PlanError
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.swap.class_swap import PREFIX

log = logging.getLogger(__name__)

_KEY = PREFIX + "compact"


def plan_of(module: nn.Module) -> PruningPlan | None:
    """The plan that made a module compact, all that were applied in one; None for a dense module.

    Args:
        module: a compact model, or a module that holds one (a LightningModule, an averaged copy). If it holds several,
            the plan of the first: `plans_of` has all.
    """
    return next(iter(plans_of(module).values()), None)


def plans_of(module: nn.Module) -> dict[str, PruningPlan]:
    """{path below `module`: plan} of every compact model in it; the path of the module itself is ""."""
    found = ((path, Compact.on(part)) for path, part in module.named_modules())
    return {path: record.plan for path, record in found if record is not None}


@dataclass(frozen=True)
class Compact:
    """The record on a compact module.

    Attributes:
        plan: what was done to it since it was dense.
        buffers: {name: the dense buffer} of the cut buffers that no state dict brings back.
        without_grad: parameters that need no gradient now that nothing is left of them, and did before.
    """

    plan: PruningPlan
    buffers: dict[str, Tensor] = field(default_factory=dict)
    without_grad: tuple[str, ...] = ()

    @staticmethod
    def on(module: nn.Module) -> Compact | None:
        """The record of this very module."""
        record: Compact | None = vars(module).get(_KEY)
        return record

    @staticmethod
    def after(module: nn.Module, plan: PruningPlan) -> Compact | None:
        """The record that `module` will have once `plan` is applied to it. To be asked before.

        None if a layer was replaced since the plan before: no one plan leads here from the dense model.

        Raises:
            PlanError: the module has factorised layers, and no plan says what `plan` would make of them.
        """
        earlier = Compact.on(module)
        unsaved = {
            f"{path}.{name}" if path else name
            for path, part in module.named_modules(remove_duplicate=False)
            for name in part._non_persistent_buffers_set
        }
        buffers = {
            name: buffer.detach().clone()
            for name, buffer in module.named_buffers(remove_duplicate=False)
            if name in plan.cuts and name in unsaved
        }
        without_grad = tuple(
            name
            for name, p in module.named_parameters(remove_duplicate=False)
            if p.requires_grad and name in plan.cuts and 0 in plan.cuts[name].new_shape
        )
        if earlier is None:
            return Compact(plan, buffers, without_grad)
        try:
            return Compact(earlier.plan.then(plan), {**buffers, **earlier.buffers}, earlier.without_grad + without_grad)
        except PlanError as error:
            if earlier.plan.factors:
                raise
            log.warning("the module no longer knows the way back to its dense form: %s", error)
            return None

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        """Fills the buffers that no state dict brings back; what was empty needs gradients again."""
        for name, buffer in module.named_buffers(remove_duplicate=False):
            if name in self.buffers:
                buffer.copy_(self.buffers[name])
        for name, p in module.named_parameters(remove_duplicate=False):
            if name in self.without_grad:
                p.requires_grad_(True)


def remember(module: nn.Module, record: Compact | None) -> None:
    """Makes that the record of this very module; None drops the one it has."""
    if record is None:
        vars(module).pop(_KEY, None)
    else:
        vars(module)[_KEY] = record
