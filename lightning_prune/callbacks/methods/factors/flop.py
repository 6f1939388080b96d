"""FLOP as a callback: which rank-one components of each weight stay is learned with the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_prune.callbacks.families.factors import FactorPruning
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.step import Step
from lightning_prune.factors.gates import ComponentGate
from lightning_prune.factors.units import FactorUnits
from lightning_prune.functional import hard_concrete
from lightning_prune.functional.adam import adam_step_
from lightning_prune.masks import Gate

_HOLD = 0.3  # share of the phase at its end in which the target is held
_TRAVEL = 12.0  # how far log α can go over the phase
_RISE = 10.0  # and how far the multipliers can
_MOST = 0.3  # the largest step of log α in a short phase
_JITTER = 0.01  # standard deviation of log α at the start


class FLOPCallback(FactorPruning):
    """Factorised Low-rank Pruning (Wang, Wohlwend & Lei, EMNLP 2020, arXiv 1910.04732) on any LightningModule.

    Each weight is ``P diag(z) Q``, a sum of rank-one components with a hard-concrete gate each. The expected number of
    weights, ``Σ E‖z‖₀(rows + columns)``, is brought to the target by the augmented Lagrangian
    ``loss + λ₁(q − t) + λ₂(q − t)²`` (q the pruned share, t its target, ramped up), whose multipliers ascend. Then each
    layer becomes two at the rank that is left, with the soft gates of evaluation folded in, and is finetuned.

    In place of two trained factors, the Parameter stays the dense weight: one factor is the orthonormal basis of its
    shorter side, from a singular value decomposition when the phase begins, and stands still until the removal; the
    other is the weight in that basis, and trains with the user's optimizer. So checkpoints are ordinary dense ones. It
    costs two small matrix products a layer and step, and directions that the basis does not separate are learned in the
    finetune only. Layers whose rank would not pay stay dense, with all components.

    Args:
        target_params: share of the network's parameters that may be left, in (0, 1); met to less than the weights that
            one component takes. 0.5 if not given.
        drop: probability that a gate's variable is below a half at the start: the source takes 0.5 for a network that
            is trained from scratch, and less for others.
        prior: how much of ``ln σ²`` of a component, against its layer's mean, is added to its log α at the start; 0 is
            the source's start, alike for all.
        gate_lr: step of log α (Adam); None: so that a gate can travel from open to closed twice over the phase.
        multiplier_lr: step of λ₁ and λ₂ (Adam, upwards); None: so that they can reach 10 over the phase.
        seed: of the gates' noise, the same on all ranks.
        warmup: training before the sparsify phase. An int counts epochs, a float is a share, "300 steps" steps.
        sparsify: training under the gates, up to the removal at the start of the next batch; as ``warmup``.
        finetune: training after the removal; None takes what is left.
        network: name of the child of the LightningModule to prune; None: the innermost that holds all parameters.
        include: fnmatch patterns on parameter or module names, whole or from any dot on; None takes every linear layer
            and ungrouped convolution.
        exclude: patterns of layers to leave dense.
        skip_first: leave the stem dense.
        skip_last: leave the classifier dense.
        min_keep: least share of each layer's components to keep.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the removal; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this at the removal.
        histogram_every: log histograms of log α every that many epochs; 0: never.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        target_params: float | None = None,
        drop: float = 0.05,
        prior: float = 0.5,
        gate_lr: float | None = None,
        multiplier_lr: float | None = None,
        seed: int = 0,
        warmup: Duration = 0.1,
        sparsify: Duration = 0.5,
        finetune: Duration | None = None,
        network: str | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        skip_first: bool = False,
        skip_last: bool = False,
        min_keep: float = 0.01,
        recalibrate_batches: int = 20,
        max_gap: float = 0.05,
        histogram_every: int = 0,
    ) -> None:
        super().__init__(**options_of(FactorPruning, locals()))
        if not 0 < drop < 1:
            raise ValueError(f"drop={drop} is a probability, in (0, 1), such as 0.05.")
        if prior < 0:
            raise ValueError(f"prior={prior} must not be negative: it opens the gates of large components.")
        for name, rate in (("gate_lr", gate_lr), ("multiplier_lr", multiplier_lr)):
            if rate is not None and rate <= 0:
                raise ValueError(f"{name}={rate} must be positive, or None.")
        self.drop, self.prior, self.seed = drop, prior, seed
        self.gate_lr, self.multiplier_lr = gate_lr, multiplier_lr

    def start(self, units: FactorUnits) -> None:
        device = units.targets[0].param.device
        noise = torch.Generator().manual_seed(self.seed)
        self._log_alpha: list[Tensor] = []
        for basis in units.bases:
            log_alpha = torch.randn(len(basis.values), generator=noise).mul_(_JITTER).to(device)
            known = basis.values.square().clamp_min(1e-12 * float(basis.values.square().max()) or 1.0).log()
            log_alpha += hard_concrete.start_log_alpha(self.drop) + self.prior * (known - known.mean()).to(log_alpha)
            self._log_alpha.append(log_alpha)
        self._multipliers, self._mean, self._square, self._count = (torch.zeros(2, device=device) for _ in range(4))
        self._price, self._start = torch.zeros((), device=device), torch.zeros((), device=device)
        self._goal = 0.0

    def gates(self, units: FactorUnits) -> Mapping[str, Gate]:
        rows = zip(units.targets, units.bases, self._log_alpha, units.costs, strict=True)
        self._components = {
            t.name: ComponentGate(b.vectors, log_alpha, t.module, cost / units.numel, self._price)
            for t, b, log_alpha, cost in rows
        }
        self._start.copy_(self._pruned())
        return self._components

    def gate_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.gate_lr or min(_TRAVEL / self.sparsify_steps, _MOST))

    def before_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        noise = torch.Generator().manual_seed(self.seed * 1_000_003 + self.seen)
        for gate in self._components.values():
            gate.noise.copy_(torch.rand(len(gate.noise), generator=noise))

    def before_step(self, units: FactorUnits, step: Step) -> None:
        if not any(step.holds(t.param) for t in units.targets):
            return
        target = 1 - units.budget(self.target_params) / units.numel
        self._goal = hard_concrete.ramp(self.progress, float(self._start), target, _HOLD)
        gap = self._pruned() - self._goal
        descent = -torch.stack([gap, gap.square()])
        rate = self.multiplier_lr or _RISE / self.sparsify_steps
        every = torch.ones_like(descent, dtype=torch.bool)
        adam_step_(self._multipliers, descent, self._mean, self._square, self._count, every, rate)
        self._price.copy_(hard_concrete.price(self._multipliers[0], self._multipliers[1], gap))

    @torch.no_grad()
    def _pruned(self) -> Tensor:
        """q: the share of the layers' weights that is expected to go; below 0 while two layers are larger than one."""
        return 1 - torch.stack([gate.share() for gate in self._components.values()]).sum()

    def score(self, units: FactorUnits) -> Tensor:
        return torch.cat(self._log_alpha).detach()

    def scales(self, units: FactorUnits) -> list[Tensor]:
        return [hard_concrete.soft_gates(log_alpha.detach()) for log_alpha in self._log_alpha]

    def tensors(self) -> dict[str, Tensor]:
        bases = {f"basis {t.name}": b.vectors for t, b in zip(self.units.targets, self.units.bases, strict=True)}
        return bases | {
            "multipliers": self._multipliers, "mean": self._mean, "square": self._square, "count": self._count,
            "price": self._price, "start": self._start,
        }  # fmt: skip

    def metrics(self) -> Mapping[str, Tensor | float]:
        first, second = self._multipliers
        pruned = self._pruned()
        return {"expected_share": 1 - pruned, "goal": 1 - self._goal, "lambda1": first, "lambda2": second}
