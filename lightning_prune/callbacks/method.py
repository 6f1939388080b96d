"""What a pruning method states, and the numbers about a run that methods and logs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_prune.callbacks import recalibrate
from lightning_prune.callbacks.run import Run
from lightning_prune.functional import budget
from lightning_prune.masks import Gate, Skipped, Target
from lightning_prune.masks.ltp import STATS

# dense: no mask yet; soft: the method's gates are on; pruned: zeros are in the weights, nothing is attached.
Stage = Literal["dense", "soft", "pruned"]


class PruningMethod(Run):
    """The part of a callback that a method fills in. `PruningCallback` decides when each of these is called."""

    target_sparsity: float | None
    recalibrate_batches: int
    max_gap: float

    def reset(self) -> None:
        """Back to the state before any fit."""
        super().reset()
        self.stage: Stage = "dense"
        self.targets: list[Target] = []
        self.skipped: list[Skipped] = []
        self.floors: list[int] = []
        self.zeros_at_prune: list[int] = []
        self.final_thresholds: Tensor | None = None
        # The last sums of each layer, [layers, len(kernels.STATS)]; float64 on the CPU.
        self.stats = torch.zeros(0, len(STATS))

    def start(self, targets: Sequence[Target]) -> None:
        """Set the method's tensors for these layers; called when the sparsify phase begins and before a resume."""
        raise NotImplementedError

    def gates(self) -> list[Gate]:
        """One gate a layer, reading the method's tensors live."""
        raise NotImplementedError

    def learn(self, stats: Tensor, active: Tensor) -> None:
        """Move the thresholds, once per optimizer step.

        Args:
            stats: float64 [layers, len(kernels.STATS)], the sums over each layer as of its last step.
            active: bool [layers], those that got a finite gradient in this step.
        """
        raise NotImplementedError

    def thresholds(self) -> Tensor:
        """The thresholds on ``w²``, shape [layers], ≥ 0."""
        raise NotImplementedError

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """What the final budget ranks weights by, highest kept first; one float32 tensor a layer.

        By default ``w²/τ``: the budget's cut through it is one common factor on all thresholds.
        """
        tiny = torch.finfo(torch.float32).tiny
        return [w.square() / tau.clamp_min(tiny) for w, tau in zip(weights, self.thresholds().float(), strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        """The method's state: tensors that are saved, and restored in place."""
        raise NotImplementedError

    def measures(self) -> dict[str, Tensor | float]:
        """The method's own numbers to log, by name without ``prune/``."""
        return {}

    def calibration_forward(self, module: LightningModule, batch: Any) -> tuple[Any, Tensor | None]:
        """How to run the network on a training batch: (output, labels or None). Override for unusual batches."""
        return recalibrate.forward_first_element(module, batch)

    # ---- what follows from it -------------------------------------------------------------------------------------

    def final_masks(self, to_target: bool) -> list[Tensor]:
        """What to keep at the hard prune, one bool tensor a layer, never less than a layer's floor.

        Args:
            to_target: meet ``target_sparsity`` to the weight, if there is one; else the thresholds decide.
        """
        weights = [t.param.detach().float() for t in self.targets]
        if to_target and self.target_sparsity is not None:
            keep = budget.keep_count(self.numel, 1 - self.target_sparsity)
            return budget.exact_masks(self.scores(weights), self.floors, keep)
        by_threshold = [w.square() > tau for w, tau in zip(weights, self.thresholds(), strict=True)]
        return budget.at_least(by_threshold, weights, self.floors)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: stage, position, layer names, and the method's tensors while masks are soft."""
        state: dict[str, Any] = {"stage": self.stage, "seen": self.seen, "names": [t.name for t in self.targets]}
        if self.stage == "soft":
            tensors = self.tensors() | {"stats": self.stats}
            state["tensors"] = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            state["thresholds"] = self.thresholds().clone()
        return state

    def load_tensors(self, saved: dict[str, Tensor]) -> None:
        """Put saved tensors back, in place: gates read them live."""
        for name, tensor in (self.tensors() | {"stats": self.stats}).items():
            tensor.copy_(saved[name])

    def check_names(self, names: Sequence[str]) -> None:
        """Raise if a checkpoint's layers are not this run's."""
        mine = [t.name for t in self.targets]
        if names and list(names) != mine:
            gone, new = sorted(set(names) - set(mine)), sorted(set(mine) - set(names))
            raise ValueError(
                f"The checkpoint's pruned layers are not this run's: it also has {gone[:5]}, this run also has "
                f"{new[:5]}. Resume with the same model, include, exclude, skip_first and skip_last."
            )

    # ---- numbers that methods and logs share ----------------------------------------------------------------------

    @property
    def numel(self) -> int:
        """Prunable weights in all, tied ones once."""
        return sum(t.numel for t in self.targets)

    def layer_zeros(self) -> list[int]:
        """Zeros of each layer, counted: at or below the threshold while masks are soft, exact zeros otherwise."""
        if self.stage == "soft":
            taus = self.thresholds()
            return [
                int((t.param.detach().float().square() <= tau).sum()) for t, tau in zip(self.targets, taus, strict=True)
            ]
        return [t.numel - int(torch.count_nonzero(t.param.detach())) for t in self.targets]
