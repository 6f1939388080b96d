"""Mutual Regularization and Threshold Selection as a callback."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_prune.callbacks.methods.channels.class_information import LabelStatistics
from lightning_prune.callbacks.methods.channels.scales import ScalePruning
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.channels.select.gated import Scales
from lightning_prune.channels.select.selection import Selection
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.mrts import (
    BinnedEntropy,
    ClassInformation,
    GaussianChannel,
    Information,
    check_polarises,
)
from lightning_prune.functional.thresholds import Rule

Estimator = Literal["gaussian", "binned", "labels"]


class MRTSCallback(ScalePruning):
    """Mutual regularization and threshold selection (Chen & Yang 2023) on any LightningModule.

    While sparsifying, a proximal step after each optimizer step moves the scale factors γ along
    ``φ(γ) = Σ τ|γ| − I(γ; z)``: to zero below a repelling point, away from it above. A rule orders each layer's
    channels, and the threshold is where the order meets the budget; then they are removed and the rest is finetuned.

    Mode "adaptive" measures γ in units that put the repelling point of each layer at its present threshold, so that the
    channels that are to go are those that shrink, in a phase of any length and at any scale of γ; factors are raised
    only to their layer's mean at the start, and biases shrink with their factors. Without a target that point stays at
    0.23 of the mean: with the closed form only channels that the training itself lets fall so low will go, which is
    none in a short one; with information="labels" those go that tell little of the classes, the more of them the larger
    ``travel``. Mode "paper" takes γ as it is, steps of ``lam·lr``, and clamps to [0, ε].

    Args:
        target_macs: share of the multiply-accumulates that may be left, in (0, 1); met within 1 %. Half of them
            if nothing else is given.
        target_params: the same for parameters.
        target_channels: the same for channels, of those that may be removed.
        target_latency: the same for the CPU latency, measured. Give one target or delta.
        delta: instead of a target, the rule's parameter. With information="labels" what goes follows from what channels
            tell and from ``travel``.
        rule: in which order channels go: "mass" (cumulative |γ| of a layer), "css" (cumulative γ²), "exp" (eq. 11 of
            the MRTS paper as printed), "global" (one threshold for all layers). See `functional.thresholds.costs`.
        tau: τ, price of |γ|. The larger, the more factors shrink.
        noise: σ_n, the estimator's noise; below ``1/(2·tau)``, or nothing polarises.
        information: "gaussian" (closed form), "binned" (entropy in fixed bins of the same noise), "labels" (what the
            channel's pooled output tells of the class, measured on ``recalibrate_batches`` at each selection).
        mode: "adaptive" measures γ in units of its layer; "paper" takes γ as it is, in steps of ``lam·lr``.
        travel: length of the phase's steps in all, in units in which ``tau`` is 1 and a layer's mean is 0.5.
        lam: λ of mode "paper", required there.
        ceiling: the largest γ of mode "paper", ε.
        scales: what is scaled. "batchnorm": γ alone, other channels stay; "gates": a factor of its own for each channel
            group where it is read, which starts at 1; "auto": γ where there is one, else a gate (γ alone with
            information="labels", which looks at what enters a BatchNorm).
        gate_lr: learning rate of the gates' Adam; it has no weight decay.
        warmup: training before the sparsify phase. An int counts epochs, a float is a share, "300 steps" steps.
        sparsify: training up to the removal at the start of the next batch; as ``warmup``.
        finetune: training after the removal; None takes what is left.
        network: name of the child of the LightningModule to prune; None: the innermost that holds all parameters.
        exclude: fnmatch patterns on names of layers, whole or from any dot on, whose channels stay.
        prune_frozen: whether layers go too that do not train.
        min_keep: least share of each layer's channels to keep; not of a branch that does nothing.
        divisor: channel counts of cut layers become multiples of it; 8 or 16 suit most hardware.
        after: "finetune" goes on with the weights that are left, "retrain" starts from fresh ones.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the removal; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this at the removal.
        latency_batch: batch size at which the CPU latency before and after is measured; 0: not at all.
        latency_runtime: where latency is measured, "eager" or "onnxruntime" (extra "onnx").
        latency_table: JSON file that keeps the measured times of layers, by machine, runtime and threads; None: none.
        histogram_every: epochs between histograms of the scores; 0: never.
        surgery: further arguments of `prune_channels`: form, groups, attention, allow_inexact, norms.

    Raises:
        ValueError: an argument out of its range.
    """

    shrinks_betas = True
    observes = "input"
    if_all_stay = (
        'Without a target, information="labels" finds what tells little of the classes; or regularize for longer '
        "(sparsify, travel or lam), raise delta, or give a target."
    )

    def __init__(
        self,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_channels: float | None = None,
        target_latency: float | None = None,
        delta: float | None = None,
        rule: Rule = "mass",
        tau: float = 1.5,
        noise: float = 0.25,
        information: Estimator = "gaussian",
        mode: Literal["adaptive", "paper"] = "adaptive",
        travel: float = 2.5,
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
        if noise <= 0:
            raise ValueError(f"noise={noise} must be positive.")
        if information not in ("gaussian", "binned", "labels"):
            raise ValueError(f"information={information!r} must be 'gaussian', 'binned' or 'labels'.")
        if information == "labels":
            if scales == "gates":
                raise ValueError(
                    "information='labels' looks at what enters a BatchNorm, and scales='gates' has none. Use "
                    "'gaussian' or 'binned', or scales='batchnorm'."
                )
            scales = "batchnorm"
        super().__init__(**options_of(ScalePruning, locals()))
        self.noise, self.estimator = noise, information
        self._closed_form: Information = GaussianChannel(noise)
        if information == "binned":
            self._closed_form = BinnedEntropy(noise * math.sqrt(2 * math.pi * math.e))
        self.repeller = check_polarises(tau, self._closed_form)[0]

    def estimate(self) -> Information:
        if self.estimator == "labels":
            return ClassInformation(self._total, self._within, self.noise)
        return self._closed_form

    def start(self, units: ChannelUnits) -> None:
        super().start(units)
        size = self.factors.importance(self.factors.read())
        self._total, self._within = torch.ones_like(size), torch.zeros_like(size)
        self._statistics = LabelStatistics(self.factors)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"total": self._total, "within": self._within}

    def scored(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        if self.estimator != "labels":
            return self.finite_score()  # without a look at any batch
        score = super().scored(trainer, pl_module)
        total, within = self._statistics.reduced(trainer)
        self._total.copy_(total)
        self._within.copy_(within)
        return score

    def sites(self) -> Mapping[str, nn.Module]:
        return {name: self.root.get_submodule(name) for name in self.factors.names}

    def observe(self, name: str, activation: Tensor, labels: Tensor | None) -> None:
        self._statistics.add(name, activation, labels)

    def selected(self, units: ChannelUnits, selection: Selection) -> None:
        super().selected(units, selection)
        if self.mode == "paper" or not self.targeted:
            return
        for i, part in enumerate(self.factors.by_layer(self.factors.importance(self.factors.read()))):
            threshold, positive = float(selection.thresholds[i]), part[part > 0]
            if threshold <= 0 and len(positive):
                threshold = float(positive.min())
            if threshold > 0:
                self._scale[i] = threshold / self.repeller
