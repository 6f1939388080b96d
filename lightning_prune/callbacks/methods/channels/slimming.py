"""Network Slimming as a callback: L1 on the BatchNorm scale factors, one threshold for the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning_prune.callbacks.methods.channels.scales import ScalePruning
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.channels.select.gated import Scales
from lightning_prune.functional.thresholds import Rule


class NetworkSlimmingCallback(ScalePruning):
    """Network Slimming (Liu et al., arXiv 1708.06519) on any LightningModule.

    While sparsifying, every scale factor shrinks by the same amount after each optimizer step, as L1 asks; the smallest
    of the whole network are removed, and the rest is finetuned.

    Args:
        target_macs: share of the multiply-accumulates that may be left, in (0, 1); met within 1 %. Half of them
            if nothing else is given.
        target_params: the same for parameters.
        target_channels: the same for channels, of those that may be removed.
        target_latency: the same for the CPU latency, measured. Give one target or delta.
        delta: instead of a target, the rule's parameter, in runs long enough for the loss to sort the channels.
        rule: in which order channels go: "mass" (cumulative |γ| of a layer), "css" (cumulative γ²), "exp" (eq. 11 of
            the MRTS paper as printed), "global" (one threshold for all layers). See `functional.thresholds.costs`.
        tau: price of |γ|; only its product with ``lam`` matters in mode "paper".
        mode: "adaptive" measures γ in units of its layer; "paper" takes γ as it is, in steps of ``lam·lr``.
        travel: length of the phase's steps in all, in units in which ``tau`` is 1 and a layer's mean is 0.5.
        lam: λ of mode "paper", required there.
        ceiling: the largest γ of mode "paper".
        scales: what is scaled. "batchnorm": γ alone, other channels stay; "gates": a factor of its own for each channel
            group where it is read, which starts at 1; "auto": γ where there is one, else a gate.
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

    def __init__(
        self,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_channels: float | None = None,
        target_latency: float | None = None,
        delta: float | None = None,
        rule: Rule = "global",
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
        super().__init__(**options_of(ScalePruning, locals()))
