"""Mutual Regularization and Threshold Selection as a callback; Network Slimming as the same parts set otherwise."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_prune.callbacks.channels import ChannelPruningCallback
from lightning_prune.callbacks.methods import class_information
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.selector import Choice
from lightning_prune.functional.mrts import (
    BinnedEntropy,
    ClassInformation,
    GaussianChannel,
    Information,
    check_polarises,
    proximal_step,
)
from lightning_prune.functional.thresholds import Rule

Estimator = Literal["gaussian", "binned", "labels"]

_START = 0.5  # where the paper's relatives initialise scale factors; what a layer's mean is measured as
_EQUAL = 1e-4  # a layer whose sizes differ by less than this share has no order yet


class MRTSCallback(ChannelPruningCallback):
    """Mutual regularization and threshold selection (Chen & Yang 2023) on any LightningModule with BatchNorm.

    While sparsifying, a proximal step after each optimizer step moves the scale factors γ along
    ``φ(γ) = Σ τ|γ| − I(γ; z)``: to zero below a repelling point, away from it above. A rule orders each layer's
    channels, and the threshold is where the order meets the budget; then they are removed and the rest is finetuned.

    Mode "adaptive" measures γ in units that put the repelling point of each layer at its present threshold, so that the
    channels that are to go are those that shrink, in a phase of any length and at any scale of γ; factors are pushed up
    only to their layer's mean at the start, and biases shrink with their factors. Without a target that point stays at
    0.23 of the mean: only channels that the training itself lets fall so low will go, which takes long. Mode "paper"
    takes γ as it is, steps of ``lam·lr``, and clamps to [0, ε].

    Tied channels (residual streams, depthwise and squeeze-excite pairs) decide together: the rule sees the root mean
    square of their factors, and a push scales them alike. Negative factors (pretrained networks have some) keep their
    sign, and no factor crosses zero.

    Args:
        target_macs: share of the multiply-accumulates that may be left; 0.5 if no target and no ``delta`` is given.
        tau: τ, price of |γ|. The larger, the more factors shrink.
        noise: σ_n, the estimator's noise; below ``1/(2·tau)``, or nothing polarises.
        information: "gaussian" (closed form), "binned" (entropy in fixed bins of the same noise), "labels" (what the
            channel's pooled output tells of the class, measured on ``recalibrate_batches`` at each choice).
        regularizer: "mr" as above, or "l1": every factor shrinks alike (Liu et al. 2017).
        mode: units and steps, as above.
        travel: length of the phase's steps in all, in units in which ``tau`` is 1 and a layer's mean is 0.5; None: 2.5
            for "mr", 0.4 for "l1".
        lam: λ of mode "paper", required there.
        ceiling: ε of mode "paper", the largest γ.
        options: as for `ChannelPruningCallback`.
    """

    def __init__(
        self,
        target_macs: float | None = None,
        tau: float = 1.5,
        noise: float = 0.25,
        information: Estimator = "gaussian",
        regularizer: Literal["mr", "l1"] = "mr",
        mode: Literal["adaptive", "paper"] = "adaptive",
        travel: float | None = None,
        lam: float | None = None,
        ceiling: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(target_macs=target_macs, **options)
        if tau <= 0 or noise <= 0 or ceiling <= 0:
            raise ValueError(f"tau={tau}, noise={noise} and ceiling={ceiling} must be positive.")
        if information not in ("gaussian", "binned", "labels"):
            raise ValueError(f"information={information!r} must be 'gaussian', 'binned' or 'labels'.")
        if regularizer not in ("mr", "l1"):
            raise ValueError(f"regularizer={regularizer!r} must be 'mr' or 'l1'.")
        if mode not in ("adaptive", "paper"):
            raise ValueError(f"mode={mode!r} must be 'adaptive' or 'paper'.")
        if (mode == "paper") != (lam is not None):
            raise ValueError(
                f"mode={mode!r}, lam={lam}: mode 'paper' needs lam, the weight of φ in the loss (3e-5 to 3e-4 over 200 "
                "CIFAR epochs; scale it with 1/(epochs·lr) for shorter ones); mode 'adaptive' has travel instead."
            )
        if travel is not None and travel < 0:
            raise ValueError(f"travel={travel} must not be negative: it is how far scale factors are pushed.")
        self.tau, self.noise, self.estimator, self.regularizer, self.mode = tau, noise, information, regularizer, mode
        self.travel = (2.5 if regularizer == "mr" else 0.4) if travel is None else travel
        self.lam, self.ceiling = lam, ceiling
        gaussian = GaussianChannel(noise)
        self.information: Information = gaussian
        if information == "binned":
            self.information = BinnedEntropy(noise * math.sqrt(2 * math.pi * math.e))
        self.repeller = check_polarises(tau, self.information)[0] if regularizer == "mr" else math.nan

    def start(self, factors: ScaleFactors) -> None:
        gamma = factors.read()
        sizes = factors.sizes(gamma)
        self._sign = gamma.sign()
        self._mean = torch.stack([part.mean() for part in factors.by_layer(sizes)])
        self._scale = self._mean / _START if self.mode == "adaptive" else torch.ones_like(self._mean)
        self._pushed = torch.ones_like(self._mean)
        self._total, self._within = torch.ones_like(sizes), torch.zeros_like(sizes)
        self._lost, self._lost_shifts = torch.zeros_like(gamma), torch.zeros_like(gamma)

    def tensors(self) -> dict[str, Tensor]:
        return {
            "sign": self._sign, "mean": self._mean, "scale": self._scale, "pushed": self._pushed,
            "total": self._total, "within": self._within, "lost": self._lost, "lost_shifts": self._lost_shifts,
        }  # fmt: skip

    def chosen(self, factors: ScaleFactors, choice: Choice) -> None:
        sizes = factors.by_layer(factors.sizes(factors.read()))
        for i, part in enumerate(sizes):
            self._pushed[i] = float(part.max() - part.min() > _EQUAL * part.max())
            if self.mode == "adaptive" and self.regularizer == "mr" and self.budget is not None:
                threshold = float(choice.thresholds[i])
                positive = part[part > 0]
                if threshold <= 0 and len(positive):
                    threshold = float(positive.min())
                if threshold > 0:
                    self._scale[i] = threshold / self.repeller

    def measure(self, trainer: Trainer, pl_module: LightningModule, factors: ScaleFactors) -> None:
        if self.estimator == "labels" and self.regularizer == "mr":
            total, within = class_information.measure(
                trainer, pl_module, self.network, factors, self.recalibrate_batches, self.calibration_forward
            )
            self._total.copy_(total)
            self._within.copy_(within)

    def push(self, factors: ScaleFactors, lr: Tensor) -> None:
        gamma = factors.read() + self._lost
        gamma = torch.where(gamma * self._sign < 0, torch.zeros_like(gamma), gamma)
        sizes = factors.sizes(gamma)
        rate = factors.sizes(lr)
        scale = self._scale[factors.layer].clamp_min(torch.finfo(gamma.dtype).tiny)
        u = sizes / scale
        if self.mode == "paper":
            assert self.lam is not None
            step, limit = self.lam * rate, torch.full_like(u, self.ceiling)
        else:
            step = self.travel / (self.tau * self.sparsify_steps) * self._pushed[factors.layer] * (rate > 0)
            limit = torch.maximum(u, self._mean[factors.layer] / scale)
        information: Information | None = None
        if self.regularizer == "mr":
            information = self.information
            if self.estimator == "labels":
                information = ClassInformation(self._total, self._within, self.noise)
        moved = proximal_step(u, step, self.tau, information, limit) * scale
        held = rate > 0
        ratio = torch.where((sizes > 0) & held, moved / sizes.clamp_min(torch.finfo(gamma.dtype).tiny), 1.0)
        factors.write(gamma * factors.spread(ratio, 1.0), self._lost)
        if self.regularizer == "mr" and self.mode == "adaptive":
            # A channel that only lost its scale would still emit act(β), times its gate if it has one.
            fade = torch.where(held & (sizes == 0) & (self._mean[factors.layer] > 0), 0.0, ratio.clamp_max(1.0))
            shifts = factors.read_shifts() + self._lost_shifts
            factors.write_shifts(shifts * factors.spread(fade, 1.0), self._lost_shifts)


class NetworkSlimmingCallback(MRTSCallback):
    """Network Slimming (Liu et al., arXiv 1708.06519): L1 on the scale factors, one threshold for the whole network.

    `MRTSCallback` with ``regularizer="l1"`` and ``rule="global"``.

    Args:
        target_macs: share of the multiply-accumulates that may be left; 0.5 if no target and no ``delta`` is given.
        rule: "global" here; another one adds threshold selection to L1.
        options: as for `MRTSCallback`.
    """

    def __init__(self, target_macs: float | None = None, rule: Rule = "global", **options: Any) -> None:
        super().__init__(target_macs=target_macs, regularizer="l1", rule=rule, **options)
