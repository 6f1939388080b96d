"""Pruning from Scratch as a callback: widths are found on random weights, then a fresh network of them is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lightning_prune.callbacks.families.channels import ChannelPruning
from lightning_prune.callbacks.guard import check_norms
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.step import Step
from lightning_prune.channels.select.selection import Selection
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.masks import Gate


def sparsity_loss(gates: Sequence[Tensor], ratio: float) -> Tensor:
    """``(mean |g| − r)²`` over all gates, a scalar: what keeps the mean gate near ``ratio``."""
    return (torch.cat([g.abs().flatten() for g in gates]).mean() - ratio) ** 2


class ChannelScale(Gate):
    """A number in [0, 1] for each channel of an output that may go; the others pass as they are.

    Args:
        groups: of each channel of dim 1, -1 where it stays: int64 [C].
        all_gates: the values of every gate of the network; each adds its own.
        lam, ratio: the penalty is ``lam · sparsity_loss``, shared by all gates.
        device: of the output.
    """

    def __init__(self, groups: Tensor, all_gates: list[Tensor], lam: float, ratio: float, device: Any) -> None:
        gated = groups >= 0
        self.values = torch.ones(int(gated.sum()), device=device, requires_grad=True)
        # Where each channel finds its factor; the last is a one.
        self._place = torch.where(gated, gated.cumsum(0) - 1, len(self.values)).to(device)
        self._all, self._lam, self._ratio = all_gates, lam, ratio
        all_gates.append(self.values)

    def factors(self) -> Tensor:
        """One number a channel, [C]."""
        return F.pad(self.values, (0, 1), value=1.0)[self._place]

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factors().to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))

    def parameters(self) -> Sequence[Tensor]:
        return [self.values]

    def penalty(self) -> Tensor:
        # Of the loss that all gates share, the gradient of this one's part: each is asked once a step.
        gates = [g if g is self.values else g.detach() for g in self._all]
        return self._lam * sparsity_loss(gates, self._ratio)


class PruningFromScratchCallback(ChannelPruning):
    """Pruning from Scratch (Wang et al., AAAI 2020, arXiv 1909.12579): no dense network is ever trained.

    In the sparsify phase, the search, every BatchNorm output is multiplied by a gate a channel; gates alone are trained
    (Adam), with ``lam·(mean |g| − ratio)²`` in the loss, and stay in [0, 1]; the weights stay at random (BatchNorm in
    train mode). Then the channels of least gates of the whole network go until the target is met, and the compact
    network starts from fresh weights, which the rest of the fit trains. So ``prune/soft_gate`` is the mean gate, and
    what is left of the training is that of a small network.

    Differences to the paper's code: tied channels (residual streams) have gates too, and go by their mean; the
    gates at the end of the search count, not those of its best epoch; the target is met to the channel, not to 0.1 %.
    It widens the network's input layers first: build a wider network to the same end (``model_kwargs={"width": 20}``)
    and give ``target_macs`` as a share of that one. Norms that start at zero (``zero_init_last`` of timm's ResNets)
    would hide what lies before them: their scale factors start the search at one.

    Args:
        ratio: the mean gate that the search aims at, in (0, 1); 0.2 for CIFAR in the paper's code, 0.5 for ImageNet.
        lam: weight of that aim; 0.5 for CIFAR, 0.05 for ImageNet.
        gate_lr: Adam's learning rate; 0.01 over 3900 steps in the paper's code. Raise it for a shorter search.
        target_macs: share of the multiply-accumulates that may be left, in (0, 1); met within 1 %. Half of them
            if nothing else is given.
        target_params: the same for parameters.
        target_channels: the same for channels, of those that may be removed.
        target_latency: the same for the CPU latency, measured. Give one target.
        warmup: training before the search, which the fresh weights throw away: 0. As ``sparsify``.
        sparsify: the search. An int counts epochs, a float is a share, "300 steps" steps.
        finetune: training of the compact network; None takes what is left.
        network: name of the child of the LightningModule to prune; None: the innermost that holds all parameters.
        exclude: fnmatch patterns on names of norms, whole or from any dot on, whose channels stay.
        prune_frozen: whether layers go too that do not train.
        min_keep: least share of each layer's channels to keep.
        divisor: channel counts of cut layers become multiples of it; 8 or 16 suit most hardware.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated in the search; 0: none.
        latency_batch: batch size at which the CPU latency before and after is measured; 0: not at all.
        latency_runtime: where latency is measured, "eager" or "onnxruntime" (extra "onnx").
        latency_table: JSON file that keeps the measured times of layers, by machine, runtime and threads; None: none.
        histogram_every: epochs between histograms of the gates; 0: never.
        surgery: further arguments of `prune_channels`: form, groups, attention, allow_inexact, norms.

    Raises:
        ValueError: an argument out of its range.
    """

    scales_only = True

    def __init__(
        self,
        ratio: float = 0.2,
        lam: float = 0.5,
        gate_lr: float = 0.01,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_channels: float | None = None,
        target_latency: float | None = None,
        warmup: Duration = 0,
        sparsify: Duration = 0.1,
        finetune: Duration | None = None,
        network: str | None = None,
        exclude: Sequence[str] = (),
        prune_frozen: bool = False,
        min_keep: float = 0.05,
        divisor: int = 1,
        recalibrate_batches: int = 20,
        latency_batch: int = 0,
        latency_runtime: str = "eager",
        latency_table: str | None = None,
        histogram_every: int = 0,
        surgery: dict[str, Any] | None = None,
    ) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"ratio={ratio} is the mean gate that the search aims at, in (0, 1).")
        if lam < 0 or gate_lr <= 0:
            raise ValueError(f"lam={lam} must not be negative, and gate_lr={gate_lr} must be positive.")
        self.ratio, self.lam, self.gate_lr = ratio, lam, gate_lr
        super().__init__(**options_of(ChannelPruning, locals()), after="retrain")

    def check(self, trainer: Trainer) -> None:
        super().check(trainer)
        if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
            raise ValueError(
                f"{type(self).__name__}: weights have no gradients in the search, and PyTorch cannot clip none of them "
                "by value. Use gradient_clip_algorithm='norm'."
            )

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().prepare(trainer, pl_module)
        check_norms(self.root, type(self).__name__)

    def gates(self, units: ChannelUnits) -> Mapping[str, Gate]:
        values: list[Tensor] = []
        self.scales: dict[str, ChannelScale] = {}
        for path, groups in units.sites().items():
            norm = self.root.get_submodule(path)
            if isinstance(norm, _BatchNorm):
                self.scales[path] = ChannelScale(groups, values, self.lam, self.ratio, norm.weight.device)
        return self.scales

    def gate_optimizer(self, parameters: list[Tensor]) -> Optimizer:
        return torch.optim.Adam(parameters, lr=self.gate_lr)

    @torch.no_grad()
    def start(self, units: ChannelUnits) -> None:
        for norm in self.root.modules():
            if isinstance(norm, _BatchNorm) and norm.affine and norm.weight.numel() and not bool(norm.weight.any()):
                nn.init.ones_(norm.weight)

    def before_step(self, units: ChannelUnits, step: Step) -> None:
        for group in step.optimizer.param_groups:  # without a gradient a weight stays, decay and momentum included
            for param in group["params"]:
                param.grad = None

    def after_step(self, units: ChannelUnits, step: Step) -> None:
        for scale in self.scales.values():
            scale.values.detach().clamp_(0, 1)

    def score(self, units: ChannelUnits) -> Tensor:
        return units.aggregate({path: scale.factors().detach() for path, scale in self.scales.items()})

    def select(
        self, trainer: Trainer, pl_module: LightningModule, *, aim: bool = False, removal: bool = False
    ) -> Selection:
        # A scale factor of zero is one that was never trained here, and proves nothing.
        return super().select(trainer, pl_module, aim=aim, removal=False)

    def metrics(self) -> Mapping[str, Tensor | float]:
        return {"soft_gate": torch.cat([scale.values.detach() for scale in self.scales.values()]).mean()}
