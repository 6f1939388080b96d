"""Self-Adaptive Network Pruning as a callback: channels that run or do not, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Adam, Optimizer

from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.families.channels import ChannelPruning
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.training_step import loss_of, with_loss
from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.graph.expected import ExpectedMacs
from lightning_prune.channels.select.taps import INPUT
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.select.writers import writers_of
from lightning_prune.errors import CalibrationError
from lightning_prune.functional.budget import one_share
from lightning_prune.masks import Gate
from lightning_prune.masks.saliency import Listener, SaliencyGate
from lightning_prune.support.noise import Noise

_TIE = 1e-6  # of the saliency, beside the share of samples: in which order channels of equal use go
_RAMP = 0.5  # share of the phase over which the price of cost grows


class SANPCallback(ChannelPruning):
    """Self-Adaptive Network Pruning (Chen et al., ICONIP 2019, arXiv 1910.08906) on any LightningModule.

    While sparsifying, a saliency-and-pruning module (SPM) at each convolution and linear layer decides by what enters
    the layer which of its output channels are on, for each sample. The loss gets ``μ·(cost − budget)²``, the cost being
    the mean share of multiply-accumulates that a sample needs.

    **What ships is static and has no SPM.** At the removal the channels go that no calibration sample uses, or with a
    target those that the fewest use; the others are on for every sample, and are finetuned so. The dynamic network with
    its SPMs lives in the sparsify phase and its checkpoints, which a Trainer with this callback validates and tests as
    they are. ``prune/macs_per_sample`` is the theoretical share of MACs of that network, and no speed: a dense runtime
    computes what is multiplied by 0.

    Our reading, as the paper names no architecture of the SPM here: ``1[W₂·relu(W₁·mean(x) + b₁) + b₂ > 0]``, a
    straight-through sigmoid, the decision after the norm behind the layer, all channels on at first, μ growing over the
    first half of the phase. An input channel counts as used where any layer that writes to it does.
    Needs automatic optimization.

    Args:
        target_macs: share of the multiply-accumulates that the static network may keep, in (0, 1); met within 1 %.
            Without a target, only channels go that no calibration sample uses.
        target_params: the same for parameters.
        target_channels: the same for channels, of those that may be removed.
        target_latency: the same for the CPU latency, measured. Give one target.
        budget: mean share of MACs that a sample may need; None: ``target_macs``, or half.
        price: μ at its full size.
        reduction: inputs of a layer per hidden unit of its SPM.
        spm_lr: step of the SPMs' Adam.
        score_batches: training batches on which the use of channels is counted, in eval mode.
        seed: of the SPMs' first weights.
        warmup: training before the sparsify phase. An int counts epochs, a float is a share, "300 steps" steps.
        sparsify: training with SPMs, up to the removal at the start of the next batch; as ``warmup``.
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

    delta = 2 * _TIE  # without a target: what was never used scores less
    if_all_stay = "Each is used by some calibration sample: give a lower budget, a longer sparsify phase, or a target."

    def __init__(
        self,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_channels: float | None = None,
        target_latency: float | None = None,
        budget: float | None = None,
        price: float = 10.0,
        reduction: int = 4,
        spm_lr: float = 1e-2,
        score_batches: int = 20,
        seed: int = 0,
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
        if budget is not None and not 0 < budget < 1:
            raise ValueError(f"budget={budget} is the mean share of MACs that a sample may need, in (0, 1).")
        if price <= 0 or spm_lr <= 0 or reduction < 1 or score_batches < 1:
            raise ValueError(
                f"price={price}, spm_lr={spm_lr}, reduction={reduction} and score_batches={score_batches} must be "
                "positive."
            )
        super().__init__(**options_of(ChannelPruning, locals()))
        shares = {"macs": target_macs, "params": target_params, "channels": target_channels, "latency": target_latency}
        if one_share(shares) is None:
            self.budget = None
        self.sample_budget = budget if budget is not None else target_macs if target_macs is not None else 0.5
        self.price, self.reduction, self.spm_lr, self.score_batches = price, reduction, spm_lr, score_batches
        self.noise = Noise(seed)

    def reset(self) -> None:
        super().reset()
        self.macs_per_sample: Tensor | float = 1.0  # mean share over the last batch

    def start(self, units: ChannelUnits) -> None:
        device = next(self.root.parameters()).device
        self.noise.restart(0)
        self.writers = writers_of(units)
        self.spms = {
            path: SaliencyGate(w.inputs, w.groups >= 0, w.dim, w.dim, self.reduction, self.noise, device)
            for path, w in self.writers.items()
        }
        self._groups = {path: w.groups.to(device) for path, w in self.writers.items()}
        written = {path: w.groups for path, w in self.writers.items()}
        self._macs = ExpectedMacs(ChannelCost.of(units.graph), device, written)

    def gates(self, units: ChannelUnits) -> Mapping[str, Gate]:
        found: dict[str, Gate] = {}
        for path, spm in self.spms.items():
            found[self.writers[path].place] = spm
            found[f"{INPUT}{path}"] = Listener(spm)
        return found

    def gate_optimizer(self, parameters: list[Tensor]) -> Optimizer:
        return Adam(parameters, lr=self.spm_lr)

    def sample_macs(self) -> Tensor:
        """The share of MACs that each sample of the last forward pass needs, [samples], differentiable."""
        opened = {path: spm.open for path, spm in self.spms.items() if spm.open is not None}
        samples = min(len(o) for o in opened.values())
        shares: dict[str, Tensor] = {}
        used = next(iter(opened.values())).new_zeros(samples, self.units.size)
        written = torch.zeros(self.units.size, dtype=torch.bool, device=used.device)
        for path, o in opened.items():
            if len(o) > samples:  # windows of one sample stand beside each other
                o = o.view(samples, -1, o.shape[1]).mean(1)
            ids = self._groups[path]
            shares[path] = o.mean(1)
            free = (ids >= 0).nonzero().flatten()
            used = used.scatter_reduce(1, ids[free].expand(samples, -1), o[:, free], "amax")
            written[ids[free]] = True
        return self._macs(torch.where(written, used, 1.0), shares)

    def train_on(self, pl_module: LightningModule, step: Callable[[Any], Any], batch: Any) -> Any:
        output = step(batch)
        loss = loss_of(output)
        if loss is None:
            return output
        share = self.sample_macs().mean()
        self.macs_per_sample = share.detach()
        price = self.price * min(1.0, self.progress / _RAMP)
        return with_loss(output, loss + price * (share - self.sample_budget).square())

    def look(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, Tensor]:
        """For each place, the share of samples that use a channel; channels of equal use are told apart by saliency."""
        sums: dict[str, Tensor] = {}
        batches = calibrate.calibration_batches(trainer, self.score_batches)
        for batch in batches:
            calibrate.rehearse(trainer, pl_module, [batch], self.calibration_forward)
            for path, spm in self.spms.items():
                if spm.open is not None and spm.saliency is not None:
                    value = spm.open.mean(0) + _TIE * spm.saliency.sigmoid().mean(0)
                    place = self.writers[path].place
                    sums[place] = sums[place] + value if place in sums else value
                spm.expire()
        return {place: total / len(batches) for place, total in sums.items()}

    def score(self, units: ChannelUnits) -> Tensor:
        if not self.observed and not bool(units.free.any()):
            return torch.zeros(units.size)  # nothing may go, which the selection says with the reasons
        if not self.observed:
            raise CalibrationError(
                "SANPCallback counts on calibration batches which channels are used, and got none: give a loader that "
                "can be read twice."
            )
        return units.aggregate(self.observed, "max")

    def metrics(self) -> Mapping[str, Tensor | float]:
        return {"macs_per_sample": self.macs_per_sample}
