"""Training a sparse model on without losing its zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_prune.callbacks.families.weights import WeightPruning
from lightning_prune.callbacks.options import options_of
from lightning_prune.masks.units import WeightUnits
from lightning_prune.plan.plan import PruningPlan


class KeepZeros(WeightPruning):
    """Holds the zeros that a model comes with, in its weights, in optimizer state and in averaged copies.

    For a fit of a model that another fit has pruned, or that `load_pruned` has read; beside a callback that removes
    channels, too. Which weights are held is read off the weights at each step, so nothing else is saved. A layer that
    is zero throughout is left alone: it was initialised so.

    Args:
        include: fnmatch patterns on parameter or module names, whole or from any dot on; None takes every conv and
            linear weight.
        exclude: patterns of weights whose zeros may come back.
        histogram_every: epochs between weight histograms, for loggers that take them; 0: never.

    Raises:
        ValueError: a pattern matches nothing, or the model has no conv or linear weight.
    """

    prunes = False

    def __init__(
        self, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None, histogram_every: int = 0
    ) -> None:
        super().__init__(sparsify=0, recalibrate_batches=0, min_keep=0.0, **options_of(KeepZeros, locals()))

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().prepare(trainer, pl_module)
        self._take([t for t in self.units.targets if bool(t.param.detach().any())], self.units.targets)
        self.stage, self.zeros_at_prune = "pruned", self.units.zeros()
        if not sum(self.zeros_at_prune):
            self.monitor.warn_once("none", "KeepZeros has nothing to hold: no weight of the model is zero.")

    def trained(self, trainer: Trainer) -> Callable[[Tensor], bool]:
        return lambda p: True  # a layer that is frozen now may be unfrozen later

    def on_channels_removed(self, trainer: Trainer, module: LightningModule, plan: PruningPlan) -> None:
        """The layers are smaller now, and some of the zeros are gone with their channels."""
        self.zeros_at_prune = self.units.zeros()
        self._silent = None

    def score(self, units: WeightUnits) -> Tensor:
        return torch.ones(units.numel)
