"""How much a method that zeroes weights may leave: a share of the weights, or of the network's sparse MACs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.distributed.tensor import DTensor

from lightning_prune.callbacks import calibrate
from lightning_prune.errors import BudgetError, CalibrationError
from lightning_prune.functional import budget
from lightning_prune.masks import Target
from lightning_prune.masks.units import WeightUnits
from lightning_prune.support.macs import macs_by_weight
from lightning_prune.support.modes import mode


@dataclass(frozen=True)
class Costs:
    """MACs of one call of the network on a batch, which only count next to each other.

    Attributes:
        total: of all matrix products and convolutions.
        by_name: of those with each conv and linear weight.
    """

    total: int
    by_name: Mapping[str, int]

    @classmethod
    @torch.no_grad()
    def count(
        cls,
        trainer: Trainer,
        module: LightningModule,
        targets: Sequence[Target],
        batch: Any,
        forward: calibrate.Forward,
    ) -> Costs:
        """Of one call in eval mode, before masks stand; the first rank's count is that of all.

        Raises:
            CalibrationError: the network does not run on the batch.
            NotImplementedError: weights are in shards.
        """
        if any(isinstance(t.param, DTensor) for t in targets):
            raise NotImplementedError(
                "target_macs counts the MACs of whole weights, and fully_shard has split these over processes: give "
                "target_sparsity, or train with DDP."
            )
        weights, stance = {t.name: t.param.detach() for t in targets}, torch.compiler.set_stance("force_eager")
        try:
            with isolate_rng(), mode(module, False), stance, macs_by_weight(weights) as found:
                calibrate.run(trainer, module, batch, forward)
        except CalibrationError as error:
            raise CalibrationError(
                f"target_macs counts the MACs of a call: {error}, or give target_sparsity."
            ) from error
        return trainer.strategy.broadcast(cls(found.total, found.by_weight))

    def prices(self, targets: Sequence[Target]) -> tuple[float, ...]:
        """MACs of one weight of each layer.

        Raises:
            BudgetError: the call uses some of them in no product.
        """
        if idle := [t.name for t in targets if not self.by_name[t.name]]:
            raise BudgetError(
                f"target_macs: {', '.join(idle[:5])} {'do' if len(idle) > 1 else 'does'} no MACs when the network is "
                "called in eval mode, so that nothing says what keeping them costs: exclude them."
            )
        return tuple(self.by_name[t.name] / t.numel for t in targets)

    def prunable(self, targets: Sequence[Target]) -> float:
        """The share of all MACs that these layers take."""
        return sum(self.by_name[t.name] for t in targets) / self.total


class WeightTarget:
    """The target of a callback that zeroes weights.

    Sparse MACs are those of products with a weight that is not zero: of a layer, its kept share of its dense MACs. What
    is not pruned (layers that are left out, attention's products) counts whole. That is the theoretical cost of the
    field's tables (Kusupati et al., arXiv 2002.03231; Evci et al., arXiv 1911.11134), and not a time.

    Args:
        sparsity: share of weights that are zero, in [0, 1).
        compression: the same as weights / non-zero ones, ≥ 1.
        macs: share of the network's sparse MACs that may be left, in (0, 1).

    Raises:
        ValueError: a target out of its range, or several.

    Attributes:
        costs: counted where MACs are the target.
    """

    def __init__(self, sparsity: float | None, compression: float | None, macs: float | None) -> None:
        self.sparsity = budget.one_target(sparsity, compression)
        if macs is not None and self.sparsity is not None:
            raise ValueError(f"target_macs={macs} and a target of zeros decide the same thing: give one of them.")
        self.macs = macs if budget.one_share({"macs": macs}) else None
        self.costs: Costs | None = None

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self.sparsity is not None or self.macs is not None

    def count(
        self,
        trainer: Trainer,
        module: LightningModule,
        targets: Sequence[Target],
        batch: Any,
        forward: calibrate.Forward,
    ) -> None:
        """Count what weights cost on a batch (None: on one of the training data), if MACs are the target."""
        if self.macs is not None:
            batches = [batch] if batch is not None else calibrate.calibration_batches(trainer, 1)
            self.costs = Costs.count(trainer, module, targets, batches[0], forward)

    def prices(self, targets: Sequence[Target]) -> tuple[float, ...]:
        """What a weight of each layer costs; (): 1 each, or nothing was counted yet."""
        return self.costs.prices(targets) if self.costs is not None else ()

    def share(self, units: WeightUnits) -> float:
        """The share of the units' cost that may be left.

        Raises:
            BudgetError: MACs are the target, and what is not pruned takes more of them.
        """
        if self.macs is None:
            assert self.sparsity is not None
            return 1 - self.sparsity
        assert self.costs is not None
        prunable = self.costs.prunable(units.targets)
        share = 1 - (1 - self.macs) / prunable
        if share <= 0:
            raise BudgetError(
                f"target_macs={self.macs} is to leave {self.macs:.2%} of the MACs, and what is not pruned takes "
                f"{1 - prunable:.2%} alone: prune more layers, or ask for more than that."
            )
        return share

    def check(self, units: WeightUnits) -> None:
        """Raise `BudgetError` if the least that layers keep is more than the target leaves, as far as that is known."""
        if self.sparsity is not None or self.costs is not None:
            numels, allowed = [t.numel for t in units.targets], units.allowed(self.share(units))
            budget.check_feasible(units.names, numels, units.floors, allowed, units.prices)

    def sparse_macs(self, units: WeightUnits, zeros: Sequence[int]) -> float:
        """The share of the network's MACs that is left with that many zeros in each layer, where they were counted."""
        assert self.costs is not None
        kept = torch.tensor([t.numel - z for t, z in zip(units.targets, zeros, strict=True)], dtype=torch.float64)
        return 1 - (1 - float(units.share(kept))) * self.costs.prunable(units.targets)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {} if self.costs is None else {"costs": asdict(self.costs)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint holds.

        Raises:
            ValueError: it is one of a pruning to another kind of target.
        """
        if self.macs is not None and "costs" in state:
            self.costs = Costs(**state["costs"])
        elif self.macs is not None and state["stage"] != "dense":
            raise ValueError(
                f"target_macs={self.macs}, and the checkpoint is one of a pruning to a share of weights: resume with "
                "its target, or from a checkpoint of the warm-up."
            )
