"""Transformable Architecture Search as a callback: widths and depths by gradient descent on held-out data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Adam, Optimizer

from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.families.channels import ChannelPruning
from lightning_prune.callbacks.held_out import HeldOut, first_loader
from lightning_prune.callbacks.options import options_of
from lightning_prune.callbacks.phases import Duration
from lightning_prune.callbacks.trainer import loss_scale
from lightning_prune.callbacks.training_step import check_takes_batches
from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.graph.expected import ExpectedMacs
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.gating import flops_loss
from lightning_prune.functional.schedules import anneal
from lightning_prune.masks import Gate
from lightning_prune.masks.depths import Depths
from lightning_prune.masks.widths import Counts, ranks_of, width_gates
from lightning_prune.scoring.loss import task_loss
from lightning_prune.support.noise import Noise

WIDTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The paper's candidates for a layer's width."""
DEPTHS = (1 / 3, 2 / 3, 1.0)
"""The paper's candidates for the number of blocks in a stage."""


class TASCallback(ChannelPruning):
    """Transformable Architecture Search (Dong & Yang, NeurIPS 2019, arXiv 1905.09717): widths and depths.

    While sparsifying, each layer has a distribution over widths, and each run of residual branches on one stream, a
    stage, over depths. A step draws two of each by Gumbel noise. What reads the layer gets the mixture of both
    features, brought to one width by channel-wise interpolation; what a branch adds is weighed by the share of the
    depths that reach it. Weights train on the fit's batches, and after each of them the distributions on one of the
    held-out data, by the loss there plus ``price·(±log E)``, E being the expected MACs. At the removal the branches
    behind the most likely depths go whole, fewer where less than the target would be left, and each layer keeps its
    first channels, as many as its most likely width says, all shifted by one common share so that the target is met.
    For the paper's third stage add a `DistillationCallback`.

    Left out: a BatchNorm of its own for each width, and widths that differ within a residual stream: layers that must
    go together have one. Expected MACs take layers and stages as independent. A branch that surgery cannot take out
    stays: attention's, one that ends in squeeze-and-excitation, the first of a stage beside a strided shortcut.
    Ours: interpolation where a layer reads, after the activation; two depths a step, as for widths, and a branch reads
    the stream as those before it left it, where the paper mixes the outputs of whole blocks; the loss of the
    distributions is the task's own (cross-entropy for classes), whatever ``training_step`` adds. Needs automatic
    optimization.

    Args:
        target_macs: share of the multiply-accumulates that may be left, in (0, 1); met within 1 %. Half of them
            if nothing else is given. It is also what E is held to; the budget of MACs is 0.5 with another target.
        target_params: the same for parameters.
        target_channels: the same for channels, of those that may be removed.
        target_latency: the same for the CPU latency, measured. Give one target.
        held_out: a loader of batches on which the distributions learn, such as half of the training data, of which the
            fit gets the rest; None: the fit's validation data, or without any the training batches, with a warning.
        widths: shares of a layer's channels to choose among, the last 1.
        depths: shares of a stage's blocks to choose among, the last 1; one block stays. (): depth is not searched.
        price: of the MACs in the loss of the distributions.
        tolerance: how far below the target the MACs of the most likely choices cost nothing, as a share of all.
        temperature: of the Gumbel softmax, at the start and at the end, along a cosine.
        width_lr: step of the distributions' Adam.
        seed: of the draws.
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
        held_out: Iterable[Any] | None = None,
        widths: Sequence[float] = WIDTHS,
        depths: Sequence[float] = DEPTHS,
        price: float = 2.0,
        tolerance: float = 0.05,
        temperature: tuple[float, float] = (5.0, 0.1),
        width_lr: float = 1e-3,
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
        for name, shares, none in (("widths", widths, ""), ("depths", depths or DEPTHS, ", or () for none")):
            increasing = all(a < b for a, b in itertools.pairwise((0.0, *shares)))
            if len(shares) < 2 or not increasing or shares[-1] != 1:
                told = f"expected two shares or more, increasing, the last of them 1{none}."
                raise ValueError(f"{name}={tuple(shares)}: {told}")
        if price < 0 or tolerance < 0 or width_lr <= 0 or min(temperature) <= 0:
            raise ValueError(
                f"price={price} and tolerance={tolerance} must not be negative; width_lr={width_lr} and "
                f"temperature={temperature} must be positive."
            )
        super().__init__(**options_of(ChannelPruning, locals()))
        self.held_out, self.price, self.tolerance = held_out, price, tolerance
        self.choices, self.depth_choices = tuple(widths), tuple(depths)
        self.temperature, self.width_lr, self.noise = temperature, width_lr, Noise(seed)
        self.macs_goal = target_macs if target_macs is not None else 0.5

    def reset(self) -> None:
        super().reset()
        self._stream: HeldOut | None = None
        self.expected: Tensor | float = 1.0  # share of MACs
        self.silenced = ()

    def start(self, units: ChannelUnits) -> None:
        device = next(self.root.parameters()).device
        self.sizes, rank = ranks_of(units)
        self._layer, self._rank = units.layer.to(device), rank.to(device)
        self.widths = Counts(self.sizes, self.choices, device)
        form = self.surgery.get("form", "auto")
        self.depths = Depths.of(units, self.depth_choices, form, self.left, device) if self.depth_choices else None
        if self.depth_choices and self.depths is None:
            self.monitor.warn_once(
                "depths",
                f"TASCallback finds no residual branches of {type(units.network).__name__} that can be taken out, and "
                "searches widths alone; depths=() says so.",
            )
        branches = None if self.depths is None else self.depths.layers()
        self._macs = ExpectedMacs(ChannelCost.of(units.graph), device, branches=branches)

    def gates(self, units: ChannelUnits) -> Mapping[str, Gate]:
        found, mixed = width_gates(self.widths, units, self._rank)
        for i in sorted(set(range(len(units.layers))) - mixed):
            self.monitor.warn_once(
                units.layers[i][0],
                f"TASCallback cannot mix widths of {units.layers[i][0]}: no layer reads its channels one by one. Its "
                "width is decided by the MACs alone; exclude it to keep it whole.",
            )
        return found | (self.depths.gates() if self.depths is not None else {})

    def gate_optimizer(self, parameters: list[Tensor]) -> Optimizer:
        return Adam(parameters, lr=self.width_lr, betas=(0.5, 0.999), weight_decay=1e-3)

    def loss(self, output: Any, labels: Tensor | None) -> Tensor:
        """The task's loss on an output of `calibration_forward`; override for tasks that `task_loss` does not know."""
        return task_loss(output, labels)

    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().rehearse(trainer, pl_module, batch)
        if self.held_out is None and first_loader(trainer.val_dataloaders) is None:
            check_takes_batches(pl_module)
            calibrate.rehearse(trainer, pl_module, [batch], self.calibration_forward, self.loss)

    def train_on(self, pl_module: LightningModule, step: Callable[[Any], Any], batch: Any) -> Any:
        assert self.phases is not None
        trainer = pl_module.trainer
        self.noise.restart(self.seen)  # the same widths on all ranks
        temperature = anneal(self.progress, *self.temperature, shape="cosine")
        learned = [self.widths] if self.depths is None else [self.widths, self.depths.counts]
        for counts in learned:
            counts.draw(self.noise, temperature, learn=True)
        total = self.loss(*self.calibration_forward(pl_module, self._other(trainer, batch)))
        total = total + self.price * self.macs_loss()
        logits = [counts.logits for counts in learned]
        grads = torch.autograd.grad(total * (loss_scale(trainer) / self.accumulate), logits)
        for p, grad in zip(logits, grads, strict=True):
            p.grad = grad if p.grad is None else p.grad + grad
        for counts in learned:
            counts.draw(self.noise, temperature, learn=False)
        return step(batch)

    def macs_loss(self) -> Tensor:
        """What the present distributions cost, differentiable in the logits."""
        free = self._layer >= 0
        stays = self.widths.stays(self._layer[free], self._rank[free])
        used = stays.new_ones(len(free))  # in a step of a true half precision, the default dtype is another
        used[free] = stays
        best = torch.tensor(self.widths.best(), device=free.device)
        likely = torch.where(free, (self._rank < best[self._layer.clamp_min(0)]).to(used.dtype), 1.0)
        runs = None if self.depths is None else self.depths.runs()
        expected = self._macs(used, runs=runs)
        self.expected = expected.detach()
        if self.depths is not None:
            runs = self.depths.reached(self.depths.counts.best()).to(used.dtype)
        return flops_loss(expected, float(self._macs(likely, runs=runs)), self.macs_goal, self.tolerance)

    def _other(self, trainer: Trainer, batch: Any) -> Any:
        """The held-out batch beside a training batch."""
        assert self.phases is not None
        if self._stream is None:
            loader = self.held_out if self.held_out is not None else first_loader(trainer.val_dataloaders)
            if loader is None:
                told = "TASCallback has no held-out data, so widths learn on the batches that weights train on: give "
                self.monitor.warn_once("held out", f"{told}held_out=..., a loader, or validation data.")
                return batch
            self._stream = HeldOut(loader)
        return self._stream.batch(trainer, self.seen - self.phases.begin)

    def score(self, units: ChannelUnits) -> Tensor:
        """How far each group lies inside its layer's most likely width, as a share of the layer; negative outside.

        −inf in branches that go whole.
        """
        score = torch.full((units.size,), torch.inf, dtype=torch.float64)
        best, rank = torch.tensor(self.widths.best()), self._rank.cpu()
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        layer = units.layer[units.free]
        score[units.free] = (best[layer] - rank[units.free]) / sizes[layer]
        if self.depths is not None:
            gone = self.depths.skipped(self.selector, self.budget)
            self.silenced = [branch.end for branch in gone]
            for branch in gone:
                score[branch.inside] = -torch.inf
        return score

    def metrics(self) -> Mapping[str, Tensor | float]:
        blocks = {} if self.depths is None else {"blocks": float(sum(self.depths.counts.best()))}
        return {"expected_macs": self.expected} | blocks
