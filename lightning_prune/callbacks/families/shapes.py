"""What families share whose outcome is a smaller network: shapes change in mid-fit, and checkpoints follow."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_prune.callbacks.checkpoint import ShapeHooks, note_shapes
from lightning_prune.callbacks.families.zeros import warn_if_zeros_are_free
from lightning_prune.callbacks.guard import check_launcher
from lightning_prune.callbacks.lifecycle import PruningCallback
from lightning_prune.callbacks.trainer import averaged_copies
from lightning_prune.masks import detach
from lightning_prune.support.network import find_network


class ShapePruning(PruningCallback):
    """Base of the families that make layers smaller, of one network in the LightningModule, before a batch.

    Args:
        network: name of the child of the LightningModule to prune; None: the innermost that holds all parameters.
        options: those of `PruningMethod`.
    """

    removes_at = "batch start"

    def __init__(self, network: str | None, *options: Any) -> None:
        self.network_name = network
        self._hooks = ShapeHooks()
        super().__init__(*options)

    def check(self, trainer: Trainer) -> None:
        check_launcher(trainer, type(self).__name__)

    def open(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hooks.wrap(pl_module, lambda: averaged_copies(trainer))

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.root = find_network(pl_module, self.network_name, self.averages.parameters())
        warn_if_zeros_are_free(trainer, self.root)

    def release(self, pl_module: LightningModule) -> None:
        detach(pl_module)
        self._hooks.release()

    def save(self, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        note_shapes(pl_module, checkpoint)
