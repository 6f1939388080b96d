"""Checkpoints of compact models: the plan travels in the checkpoint, and shapes change before weights are loaded.

Lightning restores a module's weights before any callback's state, so the module itself must be ready for them: its
``on_load_checkpoint`` runs first. A module with `CompactCheckpoint` among its bases is; for other modules the callback
wraps the hook while a Trainer runs, but nothing of ours runs in ``load_from_checkpoint`` without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch.core.hooks import CheckpointHooks
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import Compact
from lightning_prune.support.network import reachable

__all__ = ["CompactCheckpoint", "ShapeHooks", "note_shapes", "take_shapes"]

KEY = "lightning_prune_plan"


def note_shapes(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Puts the plans of a compact module into a checkpoint, {address: JSON}; nothing for a dense one."""
    plans = {address: record.plan.to_json() for address, _, record in _compact_parts(module)}
    if plans:
        checkpoint[KEY] = plans


def _compact_parts(module: nn.Module) -> list[tuple[str, nn.Module, Compact]]:
    """(address, part, record) of each compact part: the network, and copies of it, unregistered ones too."""
    found = ((address, part, Compact.on(part)) for address, part in reachable(module))
    return [(address, part, record) for address, part, record in found if record is not None]


def take_shapes(module: nn.Module, checkpoint: dict[str, Any], averaged: Iterable[nn.Module] = ()) -> None:
    """Gives a module the shapes that a checkpoint's weights have, so that they load with ``strict=True``.

    A dense module becomes compact by the checkpoint's plan; a compact one becomes dense first if it has another.

    Args:
        module: holds the network, as it was when the checkpoint was saved.
        checkpoint: as Lightning loads it.
        averaged: copies of the module that get the same shapes.

    Raises:
        PlanError: the plan does not fit the module.
    """
    wanted = {address: PruningPlan.from_json(text) for address, text in checkpoint.get(KEY, {}).items()}
    for each in (module, *(average.module if isinstance(average, AveragedModel) else average for average in averaged)):
        present: dict[str, PruningPlan] = {}
        for address, part, record in _compact_parts(each):
            present[address] = record.plan
            if wanted.get(address) != record.plan:
                record.plan.undo(part)
        places = dict(reachable(each))
        for address, plan in wanted.items():
            # A copy that was kept outside of the state dict need not be there.
            if address in places and present.get(address) != plan:
                plan.apply(places[address])


class CompactCheckpoint(CheckpointHooks):
    """Lets checkpoints of a compact LightningModule load anywhere, ``load_from_checkpoint`` without a Trainer included.

    >>> from lightning.pytorch import LightningModule
    >>> class Net(CompactCheckpoint, LightningModule): ...

    A module with checkpoint hooks of its own calls ``super()`` in them, or `take_shapes` in ``on_load_checkpoint``.
    """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes which channels are left, if any were removed."""
        assert isinstance(self, nn.Module)
        super().on_save_checkpoint(checkpoint)
        note_shapes(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the channels that the checkpoint's weights have."""
        assert isinstance(self, nn.Module)
        take_shapes(self, checkpoint)
        super().on_load_checkpoint(checkpoint)


class ShapeHooks:
    """Wraps a module's checkpoint hooks so that its shapes are noted and taken; `release` unwraps them."""

    def __init__(self) -> None:
        self._module: nn.Module | None = None
        self._told = False

    def wrap(self, module: nn.Module, averaged: Callable[[], Iterable[nn.Module]]) -> None:
        """Start; ``averaged`` is asked for the copies when a checkpoint is loaded."""
        self.release()
        load: Any = module.on_load_checkpoint
        save: Any = module.on_save_checkpoint
        own = getattr(type(module), "on_load_checkpoint", None) is not CheckpointHooks.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            take_shapes(module, checkpoint, averaged())
            load(checkpoint)

        def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
            note_shapes(module, checkpoint)
            save(checkpoint)
            if KEY in checkpoint and not self._told and not own:
                self._told = True
                name = type(module).__name__
                rank_zero_info(
                    f"Checkpoints of this {name} are compact from here on. To load them without this callback, write "
                    f"class {name}(lightning_prune.CompactCheckpoint, LightningModule), or call "
                    "lightning_prune.take_shapes(self, checkpoint) in its on_load_checkpoint."
                )

        module.__dict__["on_load_checkpoint"] = on_load_checkpoint
        module.__dict__["on_save_checkpoint"] = on_save_checkpoint
        self._module = module

    def release(self) -> None:
        """Give the module its own hooks back."""
        if self._module is not None:
            self._module.__dict__.pop("on_load_checkpoint", None)
            self._module.__dict__.pop("on_save_checkpoint", None)
            self._module = None
