"""Channel pruning by scale factors: a proximal step after each optimizer step regularizes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.callbacks.families.channels import ChannelPruning
from lightning_prune.callbacks.guard import check_norms, has_norms
from lightning_prune.callbacks.logs import by_reason
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.step import Step
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.gated import Scales, scaled_units
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.selection import Selection
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.budget import one_share
from lightning_prune.functional.mrts import Information, proximal_step
from lightning_prune.functional.thresholds import RULES, Rule, check_delta
from lightning_prune.masks import Gate
from lightning_prune.masks.scales import scale_gates

_START = 0.5  # where the paper's relatives initialise scale factors; what a layer's mean is measured as
_EQUAL = 1e-4  # a layer whose factors differ by less than this share has no order yet


class ScalePruning(ChannelPruning):
    """Base of MRTS and Network Slimming: what a proximal step on the penalty does to the scale factors.

    Tied channels (residual streams, depthwise and squeeze-excite pairs) decide together: their score is the root mean
    square of their factors, and a step scales them alike. Negative factors (pretrained networks have some) keep their
    sign, and no factor crosses zero. A method gives ``estimate`` and may shrink biases with their factors.

    Args:
        delta: the rule's parameter where there is no target.
        rule: in which order channels go: "mass" (cumulative |γ| of a layer), "css" (cumulative γ²), "exp" (eq. 11 of
            the MRTS paper as printed), "global" (one threshold for all layers). See `functional.thresholds.costs`.
        tau: price of |γ|.
        mode: "adaptive" measures γ in units of its layer; "paper" takes γ as it is, steps of ``lam·lr``, and clamps.
        travel: length of the phase's steps in all, in units in which ``tau`` is 1 and a layer's mean is 0.5.
        lam: λ of mode "paper", required there.
        ceiling: the largest γ of mode "paper".
        scales: "batchnorm", "gates", or "auto": gates for groups without a BatchNorm factor.
        gate_lr: learning rate of gates.
        target_macs, target_params, target_channels, target_latency, warmup, sparsify, finetune, network, exclude,
            prune_frozen, min_keep, divisor, after, recalibrate_batches, max_gap, latency_batch, latency_runtime,
            latency_table, histogram_every, surgery: see `ChannelPruning`.
    """

    scales_only = True
    factors: ScaleFactors

    def __init__(
        self,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_channels: float | None = None,
        target_latency: float | None = None,
        delta: float | None = None,
        rule: Rule = "mass",
        tau: float = 1.0,
        mode: Literal["adaptive", "paper"] = "adaptive",
        travel: float = 0.4,
        lam: float | None = None,
        ceiling: float = 1.0,
        scales: Scales = "auto",
        gate_lr: float = 0.01,
        warmup: Duration = 0.1,
        sparsify: Duration = 0.5,
        finetune: Duration | None = None,
        network: str | None = None,
        exclude: Sequence[str] = (),
        prune_frozen: bool = False,
        min_keep: float = 0.05,
        divisor: int = 1,
        after: Literal["finetune", "retrain"] = "finetune",
        recalibrate_batches: int = 20,
        max_gap: float = 0.05,
        latency_batch: int = 0,
        latency_runtime: str = "eager",
        latency_table: str | None = None,
        histogram_every: int = 0,
        surgery: dict[str, Any] | None = None,
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"rule={rule!r} must be one of {RULES}.")
        if tau <= 0 or ceiling <= 0:
            raise ValueError(f"tau={tau} and ceiling={ceiling} must be positive.")
        if mode not in ("adaptive", "paper"):
            raise ValueError(f"mode={mode!r} must be 'adaptive' or 'paper'.")
        if (mode == "paper") != (lam is not None):
            raise ValueError(
                f"mode={mode!r}, lam={lam}: mode 'paper' needs lam, the weight of the penalty in the loss (3e-5 to "
                "3e-4 over 200 CIFAR epochs; scale it with 1/(epochs·lr) for shorter ones); mode 'adaptive' has travel "
                "instead."
            )
        if scales not in get_args(Scales):
            raise ValueError(f"scales={scales!r} must be one of {get_args(Scales)}.")
        if gate_lr <= 0:
            raise ValueError(f"gate_lr={gate_lr} must be positive: it is the learning rate of gates.")
        if travel < 0:
            raise ValueError(f"travel={travel} must not be negative: it is how far scale factors are moved.")
        super().__init__(**options_of(ChannelPruning, locals()))
        if delta is not None:
            check_delta(delta, rule)
            shares = {"macs": target_macs, "params": target_params, "channels": target_channels}
            if given := one_share(shares | {"latency": target_latency}):
                raise ValueError(f"target_{given[0]}={given[1]}, delta={delta}: give one of them.")
            self.budget = None
        self.delta, self.rule = (1e-3 if delta is None else delta), rule
        self.tau, self.mode, self.travel, self.lam, self.ceiling = tau, mode, travel, lam, ceiling
        self.scale_kind, self.gate_lr = scales, gate_lr

    # ---- what a method says -----------------------------------------------------------------------------------------

    shrinks_betas = False  # whether biases shrink with their factors

    def estimate(self) -> Information | None:
        """What the penalty grants a channel for what it tells; None: plain L1."""
        return None

    # ---- the rest ---------------------------------------------------------------------------------------------------

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().prepare(trainer, pl_module)
        if self.scale_kind == "batchnorm":
            check_norms(self.root, type(self).__name__, "With scales='auto' gates do. ")

    def find_units(
        self, network: nn.Module, graph: ChannelGraph, trains: Callable[[Tensor], bool], stay: Mapping[str, str]
    ) -> ChannelUnits:
        return scaled_units(network, graph, exclude=self.exclude, trains=trains, stay=stay, scales=self.scale_kind)

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().begin(trainer, pl_module, batch)
        scales, layers = self.units.scales, self.units.layers
        if scales is not None and (gates := sum(len(gate) for gate in scales.gates)):
            of = by_reason((names[0], "") for names in layers[-len(scales.gates) :])[0].rstrip(": ")
            norms = len(scales.groups) - gates
            beside = f", and by BatchNorm scale factors on {norms}" if norms else ""
            rank_zero_info(f"{type(self).__name__} decides by gates on {gates} channel groups ({of}){beside}.")

    def score(self, units: ChannelUnits) -> Tensor:
        return units.from_scales(self.factors.importance(self.factors.read()))

    def start(self, units: ChannelUnits) -> None:
        assert units.scales is not None
        self.factors = factors = units.scales.to(units.scales.params[0].device)
        gamma = factors.read()
        importance = factors.importance(gamma)
        self._sign = gamma.sign()
        self._mean = torch.stack([part.mean() for part in factors.by_layer(importance)])
        self._scale = self._mean / _START if self.mode == "adaptive" else torch.ones_like(self._mean)
        self._ordered = torch.ones_like(self._mean)
        self._lost, self._lost_betas = torch.zeros_like(gamma), torch.zeros_like(gamma)
        self._read_by = [
            [tap.module.weight for tap in units.taps.values() if bool(torch.isin(ids, tap.groups).any())]
            for ids in units.scales.gated()
        ]

    def gates(self, units: ChannelUnits) -> Mapping[str, Gate]:
        assert units.scales is not None
        return scale_gates(units.scales, units.taps)

    def watched(self) -> Sequence[nn.Parameter]:
        """Nothing where all is a step of the penalty after the optimizer's; gates learn at Lightning's hooks."""
        gated = self._gates or self.scale_kind == "gates" or (self.scale_kind == "auto" and not has_norms(self.root))
        return super().watched() if gated else []

    def gate_optimizer(self, parameters: list[Tensor]) -> Optimizer:
        return torch.optim.Adam(parameters, lr=self.gate_lr)

    def folds(self) -> Tensor | None:
        return self.factors.gate_values(self.units.size) if self.factors.gates else None

    def tensors(self) -> dict[str, Tensor]:
        return {
            "sign": self._sign, "mean": self._mean, "scale": self._scale, "ordered": self._ordered,
            "lost": self._lost, "lost_betas": self._lost_betas,
        }  # fmt: skip

    def selected(self, units: ChannelUnits, selection: Selection) -> None:
        factors = self.factors
        for i, part in enumerate(factors.by_layer(factors.importance(factors.read()))):
            self._ordered[i] = float(part.max() - part.min() > _EQUAL * part.max())

    def after_step(self, units: ChannelUnits, step: Step) -> None:
        norms = self.factors.params[: len(self.factors.params) - len(self.factors.gates)]
        rates = [step.rate(p) for p in norms]
        rates += [self.gate_lr * any(step.holds(w) for w in weights) for weights in self._read_by]
        if any(rates):
            self.regularize(self.factors, self.factors.per_param(rates))

    def regularize(self, factors: ScaleFactors, lr: Tensor) -> None:
        """One proximal step on the scale factors.

        Args:
            factors: to read and write.
            lr: the learning rate of each factor in this step, [factors]; 0 for those that the optimizer does not hold.
        """
        gamma = factors.read() + self._lost
        gamma = torch.where(gamma * self._sign < 0, torch.zeros_like(gamma), gamma)
        size = factors.importance(gamma)
        rate = factors.importance(lr)
        scale = self._scale[factors.layer].clamp_min(torch.finfo(gamma.dtype).tiny)
        u = size / scale
        if self.mode == "paper":
            assert self.lam is not None
            step, limit = self.lam * rate, torch.full_like(u, self.ceiling)
        else:
            step = self.travel / (self.tau * self.sparsify_steps) * self._ordered[factors.layer] * (rate > 0)
            limit = torch.maximum(u, self._mean[factors.layer] / scale)
        moved = proximal_step(u, step, self.tau, self.estimate(), limit) * scale
        held = rate > 0
        ratio = torch.where((size > 0) & held, moved / size.clamp_min(torch.finfo(gamma.dtype).tiny), 1.0)
        factors.write(gamma * factors.spread(ratio, 1.0), self._lost)
        if self.shrinks_betas and self.mode == "adaptive":
            # A channel that only lost its scale would still emit act(β), times its gate if it has one.
            fade = torch.where(held & (size == 0) & (self._mean[factors.layer] > 0), 0.0, ratio.clamp_max(1.0))
            betas = factors.read_betas() + self._lost_betas
            factors.write_betas(betas * factors.spread(fade, 1.0), self._lost_betas)
