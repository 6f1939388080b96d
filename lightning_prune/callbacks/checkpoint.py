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
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.plan.plan import PruningPlan
from lightning_prune.plan.record import plan_of

__all__ = ["CompactCheckpoint", "ShapeHooks", "note_shapes", "shapes_only", "take_shapes"]

KEY = "lightning_prune_plan"


def note_shapes(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Puts the plan of a compact module into a checkpoint, as JSON; nothing for a dense one."""
    plan = plan_of(module)
    if plan is not None:
        checkpoint[KEY] = plan.to_json()


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
    text = checkpoint.get(KEY)
    wanted = None if text is None else PruningPlan.from_json(text)
    for each in (module, *averaged):
        present = plan_of(each)
        if present == wanted:
            continue
        if present is not None:
            present.undo(each)
        if wanted is not None:
            wanted.apply(each)


def shapes_only(example: Any) -> Any:
    """An example input without the user's data in it, of one element's memory a tensor; integers stay as they are."""

    def shape(t: Tensor) -> Tensor:
        return t.new_zeros(()).expand(t.shape) if t.is_floating_point() else t

    return pytree.tree_map_only(Tensor, shape, example)


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
