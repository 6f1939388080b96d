"""Learned Threshold Pruning as a callback: one threshold a layer, learned by gradient descent with the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_prune.callbacks.methods.weights.thresholds import ThresholdPruning, share_of_gradient
from lightning_prune.callbacks.options import WITHOUT_JUMP, changed, check_ltp_options, options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.functional import ltp, path
from lightning_prune.functional.adam import adam_step_
from lightning_prune.functional.schedules import Shape, anneal, cubic_path, settling
from lightning_prune.functional.shrink import holding
from lightning_prune.masks import FadingGate, Gate, HeldGate, SoftGate
from lightning_prune.masks.ltp import BAND, FADED, KEPT, SQUARE, STATS, TASK
from lightning_prune.masks.units import WeightUnits
from lightning_prune.support.batchnorm import normalises_batches

_REFRESHES = 20  # times in the phase that Var|w| and the highest allowed thresholds are measured anew
_HOLD = 0.3  # share of the phase at its end in which the target is held
_TRAVEL = 3.0  # without a target, thresholds can travel this many times the distance to a sparsity of 0.9
_LEARN = 1.0  # with a target, how far log r of a layer can go from its prior
_AVERAGE = 0.9  # of the price that is logged
_COOLING = ("temperature", "temperature_start", "temperature_schedule", "weights_in_band")
_VANISHED = 5  # logged steps with an empty band before the warning


class LTPCallback(ThresholdPruning):
    """Learned Threshold Pruning (Azarian et al., arXiv 2003.00075) on any LightningModule.

    Each conv and linear weight gets a threshold τ on w². While sparsifying, the network uses ``w·sigm((w² − τ)/T)``;
    τ follows its exact gradient of ``loss + λ·Σ kept``; weights follow theirs in the masked weight, without the gate's
    own slope. Then the weights below the thresholds are zeroed for good, and the rest is finetuned.

    With a target, a common factor on all thresholds keeps the share that a cubic path to it asks for, and meets it to
    the weight; what is learned is each layer's part (`functional.path`), at the price λ that balances the layers. The
    network then uses ``w·relu(1 − (τ/w²)^¼)``, so that a weight fades before it goes; the prune makes that the weight.
    Where it has no BatchNorm that is multiplied by what holds each layer's norm.
    Without one, ``lam`` decides, as in the paper. Path, prior, fading and feedback are ours; mode "paper" has none.

    Args:
        target_sparsity: share of weights to prune; 0.9 if no target and no ``lam`` is given.
        lam: instead of a target, the price of keeping all prunable weights, λ·N, in units of the loss. In mode
            "paper", the price λ of one weight, with a target or without.
        mode: "normalized" learns ``u = τ/σ²`` (σ² = mean w² of the layer when the phase begins; with a target, what
            would prune normal weights alike) with Adam, so one setting serves layers of every size; "paper" learns raw
            τ by plain gradient descent, T0 constant.
        temperature: final T0; a layer's temperature is ``T0·Var(|w|)`` [eq. 15]. A gate that fades has none.
        temperature_start: T0 at the start of the phase, annealed down to ``temperature``; unused in mode "paper".
        temperature_schedule: how it is annealed.
        weights_in_band: least expected weights of a layer near its threshold; raises T0 of small layers. 0: off.
        threshold_lr: step of ``log u`` with a target, of ``u`` without one; None: so that a layer can move by a factor
            of e, or three times the way to a sparsity of 0.9, over the phase's steps. In mode "paper" the raw learning
            rate of τ, required there.
        gate: "fading", "held" (the same with each layer's norm held) or "sigmoid"; None: with a target and in mode
            "normalized", fading with a BatchNorm in train mode and held without, else the sigmoid.
        feedback: ρ, the share of their gradient that weights below the threshold get, in [0, 1]; they can come back if
            the network needs them. An output whose gradient is far larger than those of its layer's others then gets
            less of it (`masks.rows`). None: 0 where weights fade and in mode "paper" [eq. 14], else 1.
        fuse: run the masks through torch.compile: a fifth to a third less of what they cost a step, for about 30 s at
            the start (less once its cache is warm) and a compiler that torch.compile can use.
        target_compression: the same as prunable weights / non-zero ones, ≥ 1; give one of the targets.
        target_macs: share of the network's sparse MACs that may be left, in (0, 1), see `WeightTarget`; a weight then
            costs in proportion to its MACs.
        warmup: dense training first. An int counts epochs, a float is a share of the training, "300 steps" steps.
        sparsify: training under the masks, up to the hard prune; as ``warmup``.
        finetune: training after the prune; None takes what is left.
        include: fnmatch patterns on parameter or module names, whole or from any dot on; None takes every conv and
            linear weight.
        exclude: patterns of weights to leave dense.
        skip_first: leave the stem dense.
        skip_last: leave the classifier dense.
        min_keep: least share of each layer's weights to keep.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the prune; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this from the soft to the hard network.
        trail: kept shares at which an ordinary checkpoint is saved, e.g. ``[0.5, 0.2, 0.1]``.
        trail_dir: folder of the trail; default ``<log dir>/trail``.
        trail_metric: validation metric noted in the trail; default the first ``val*acc*`` or ``val*`` that is logged.
        histogram_every: epochs between weight histograms, for loggers that take them; 0: never.

    Raises:
        ValueError: an argument out of its range.
    """

    in_shards = True

    def __init__(
        self,
        target_sparsity: float | None = None,
        lam: float | None = None,
        mode: Literal["normalized", "paper"] = "normalized",
        temperature: float = 1e-3,
        temperature_start: float = 1e-1,
        temperature_schedule: Shape = "exponential",
        weights_in_band: float = 16.0,
        threshold_lr: float | None = None,
        gate: Literal["fading", "held", "sigmoid"] | None = None,
        feedback: float | None = None,
        fuse: bool = False,
        target_compression: float | None = None,
        target_macs: float | None = None,
        warmup: Duration = 0,
        sparsify: Duration = 0.6,
        finetune: Duration | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        skip_first: bool = False,
        skip_last: bool = False,
        min_keep: float = 0.01,
        recalibrate_batches: int = 20,
        max_gap: float = 0.05,
        trail: Sequence[float] | None = None,
        trail_dir: str | None = None,
        trail_metric: str | None = None,
        histogram_every: int = 0,
    ) -> None:
        if (target_sparsity, target_compression, target_macs, lam) == (None, None, None, None):
            target_sparsity = 0.9
        super().__init__(**options_of(ThresholdPruning, locals()))
        check_ltp_options(self.target.given, lam, mode, temperature, temperature_start, threshold_lr, gate)
        self.lam, self.mode, self.threshold_lr, self.fuse = lam, mode, threshold_lr, fuse
        self.temperature, self.temperature_start = temperature, temperature_start
        self.temperature_schedule, self.weights_in_band = temperature_schedule, weights_in_band
        self.gate, self._asked = gate, feedback
        self._shape(gate or "sigmoid")

    @property
    def steered(self) -> bool:
        """Whether the kept share follows a path to a target, and the price from it."""
        return self.mode == "normalized" and self.target.given

    def _shape(self, gate: str) -> None:
        """Take a gate, and the feedback that goes with it."""
        fades = gate in WITHOUT_JUMP
        self.form = gate if fades else "step"
        self.feedback = share_of_gradient(self._asked, 0.0 if fades or self.mode == "paper" else 1.0)
        self.sums = len(STATS) + (2 if gate == "held" else 0)

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if self.gate is None and batch is not None and self.steered:  # without a batch, a checkpoint has said it
            self._shape("fading" if normalises_batches(pl_module) else "held")
        super().begin(trainer, pl_module, batch)
        unused = changed(self, LTPCallback, _COOLING)
        if self.form in WITHOUT_JUMP and unused:
            self.monitor.warn_once("cooling", f"{unused}: not used, as weights fade. gate='sigmoid' has a temperature.")

    def restore(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        super().restore(pl_module, state)
        if state["stage"] == "soft":
            self._shape(state.get("form", "step"))

    def start(self, units: WeightUnits) -> None:
        super().start(units)
        device, n = self.stats.device, len(units.targets)
        vector = partial(torch.tensor, dtype=torch.float32, device=device)
        numels = [t.numel for t in units.targets]
        self._numels = vector(numels)
        self._prices = vector(units.prices or [1.0] * n) * (units.numel / units.cost)  # 1 for the mean weight
        self._t0_floor = vector([ltp.temperature_floor(count, self.weights_in_band) for count in numels])
        squares, prior = units.sums(torch.square) / self._numels, torch.zeros(n)
        if self.steered:
            prior = path.fan_prior([t.fans for t in units.targets], numels)
            prior = path.lean_to_magnitude(prior, squares, numels)
            self._scale = path.prior_scales(
                prior, units.weights(), units.floors, numels, self.target.share(units), units.shards, units.prices
            )
        else:
            self._scale = squares if self.mode == "normalized" else torch.ones(n, device=device)
        self._own = prior.to(device)
        self._scale.clamp_(min=1e-12)
        self._variance = self._variances().clamp_min(torch.finfo(torch.float32).tiny)
        self._u, self._mean, self._square, self._count = (torch.zeros(n, device=device) for _ in range(4))
        self._cap, self._factor = torch.full((n,), torch.inf, device=device), torch.ones(n, device=device)
        self._slope, self._shift, self._tau = torch.ones(n, device=device), *torch.zeros(2, n, device=device)
        self._price = torch.tensor(self.lam or 0.0, device=device)
        self._correction = torch.zeros((), device=device)
        self._steps = torch.zeros((), dtype=torch.int64)
        self._empty_bands = 0
        self._cool()

    def gates(self, units: WeightUnits) -> dict[str, Gate]:
        more = self.feedback, self.fuse
        if self.form == "fading":
            return {name: FadingGate(tau, *more) for name, tau in zip(units.names, self._tau, strict=True)}
        if self.form == "held":
            held = zip(units.names, self._tau, self._factor, strict=True)
            return {name: HeldGate(tau, factor, *more) for name, tau, factor in held}
        parts = zip(units.names, self._slope, self._shift, strict=True)
        return {name: SoftGate(slope, shift, self.fuse, self.feedback) for name, slope, shift in parts}

    def thresholds(self) -> Tensor:
        return self._u * self._scale

    def tensors(self) -> dict[str, Tensor]:
        held = {"factor": self._factor} if self.form == "held" else {}
        return super().tensors() | held | {
            "u": self._u, "scale": self._scale, "mean": self._mean, "square": self._square, "count": self._count,
            "variance": self._variance, "cap": self._cap, "price": self._price, "own": self._own,
            "correction": self._correction, "slope": self._slope, "shift": self._shift, "tau": self._tau,
            "steps": self._steps,
        }  # fmt: skip

    def learn(self, stats: Tensor, active: Tensor) -> None:
        stats = stats.float()
        if self.form == "held":
            self._factor.copy_(holding(stats[:, SQUARE], stats[:, FADED]))
        if int(self._steps) % max(1, self.sparsify_steps // _REFRESHES) == 0:
            self._refresh()
        if self.steered:
            self._follow(stats, active)
        else:
            cost = self.price * self._prices * stats[:, BAND]
            grad = -self._scale * (stats[:, TASK] + cost)  # dL/du = σ² dL/dτ, the exact gradient
            if self.mode == "paper":
                assert self.threshold_lr is not None
                self._u.sub_(torch.where(active, self.threshold_lr * grad, torch.zeros_like(grad)))
            else:
                adam_step_(self._u, grad, self._mean, self._square, self._count, active, self._step_size())
        self._u.clamp_(min=0).copy_(torch.minimum(self._u, self._cap / self._scale))
        self._steps += 1
        self._cool()

    def _follow(self, stats: Tensor, active: Tensor) -> None:
        """Move the layers' own parts along the exact gradient in log u, and the common factor along the path."""
        tau = self.thresholds()
        task, band = tau * stats[:, TASK], tau * self._prices * stats[:, BAND]
        fresh = torch.where(active.any(), path.balanced_price(task, band), self._price)
        self._price.lerp_(fresh, 1 - _AVERAGE if int(self._steps) else 1.0)
        grad = -(task + self._price * band)
        adam_step_(self._own, grad, self._mean, self._square, self._count, active, self._step_size())
        kept = ((self._prices * self.stats[:, KEPT]).sum() / self.units.numel).float()
        goal = cubic_path(self.progress, self.target.share(self.units), _HOLD)
        self._correction.copy_(path.corrected(self._correction, kept, goal))
        self._u.copy_((self._own + path.common_factor(goal, self._correction)).exp())

    @property
    def price(self) -> Tensor:
        """λ, the price of one kept weight in units of the loss, with `target_macs` of an average one; a scalar."""
        return self._price / self.units.numel if self.mode == "normalized" and not self.steered else self._price

    def metrics(self) -> dict[str, Tensor | float]:
        price, found = self.price, super().metrics()
        if self.form == "step":
            self._warn_if_vanishing(float(found["band"]))
            found["temperature"] = self._t0()
        return found | {"lambda": price, "soft_loss": price * (self._prices * self.stats[:, KEPT]).sum().float()}

    def _warn_if_vanishing(self, band: float) -> None:
        self._empty_bands = self._empty_bands + 1 if band == 0 else 0
        text = (
            f"No weight is near its threshold at {self.progress:.0%} of the sparsify phase (a vanishing band), so "
            "thresholds have stopped moving. Raise the temperature."
        )
        if self._empty_bands == _VANISHED:
            self.monitor.warn_once("vanishing", text)

    def _step_size(self) -> float:
        if self.threshold_lr is not None:
            return self.threshold_lr
        way = _LEARN if self.steered else _TRAVEL * ltp.gaussian_threshold(0.9)
        return settling(self.progress, _HOLD) * min(way / self.sparsify_steps, 0.1)

    def _t0(self) -> float:
        shape: Shape = "constant" if self.mode == "paper" else self.temperature_schedule
        return anneal(self.progress, self.temperature_start, self.temperature, shape)

    def _cool(self) -> None:
        """Set the gates from thresholds and temperatures."""
        self._tau.copy_(self.thresholds())
        if self.form in WITHOUT_JUMP:
            return
        t0 = torch.full_like(self._t0_floor, self._t0())
        if self.mode != "paper":
            t0 = torch.maximum(t0, settling(self.progress, _HOLD) * self._t0_floor)
        torch.reciprocal(t0 * self._variance, out=self._slope)
        torch.mul(self._slope, -self._tau, out=self._shift)

    def _refresh(self) -> None:
        """Measure Var|w| [eq. 15], and how high the thresholds of nearly empty layers may go."""
        if self.form == "step":
            fresh = self._variances()
            self._variance.copy_(torch.where(fresh > 0, fresh, self._variance))
        if self.mode != "paper":
            self._cap.copy_(self.highest_thresholds())

    def _variances(self) -> Tensor:
        """Var|w| of each layer, float32 [layers]."""
        return ltp.variance_of_magnitude(self._numels, self.units.sums(torch.abs), self.units.sums(torch.square))
