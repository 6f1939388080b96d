"""Adversarial Neural Pruning with Vulnerability Suppression as a callback."""

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
from lightning_prune.callbacks.phases import Duration, training_length
from lightning_prune.callbacks.step import Step
from lightning_prune.callbacks.trainer import loss_scale
from lightning_prune.callbacks.training_step import check_takes_batches, inputs_of, loss_of, with_loss
from lightning_prune.channels.select.taps import module_of
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.attacks import PGD
from lightning_prune.masks import Gate
from lightning_prune.masks.bernoulli import BetaBernoulli, bernoulli_gates
from lightning_prune.metrics.robust import layer_inputs, vulnerability
from lightning_prune.scoring.loss import task_loss
from lightning_prune.support.modes import mode
from lightning_prune.support.noise import Noise

BASELINES: dict[str, dict[str, Any]] = {
    "Standard": {"masks": False, "adversarial": False, "suppress": 0.0},
    "BP": {"adversarial": False, "suppress": 0.0},
    "AT": {"masks": False, "suppress": 0.0},
    "AT-VS": {"masks": False},
    "ANP": {"suppress": 0.0},
    "ANP-VS": {},
}
"""The paper's baselines, as options: standard training, Bayesian pruning, adversarial training, each with VS, ANP."""


class ANPVSCallback(ChannelPruning):
    """Adversarial Neural Pruning with Vulnerability Suppression (Madaan et al., ICML 2020, arXiv 1908.04355).

    While sparsifying, each channel group has a Beta-Bernoulli mask, drawn for each example. The step is the callback's:
    it makes adversarial examples by PGD and takes two losses, one for weights, ``(CE + 2·CE_adv)/3 + λ·V``, and one for
    masks, ``CE_adv + β·KL/N``. V is the mean distance of features of clean and adversarial examples. At the removal the
    groups of least E[π] go, E[π] of the rest goes into the weights behind, and adversarial training goes on.

    Parts can be switched off; `BASELINES` has the paper's six by name: ``ANPVSCallback(**BASELINES["AT"])``. Without
    masks, the filters of least L2 norm, relative to their layer, go.

    Ours: masks stand where layers read channels, one for all that must go together; one draw serves the clean, the
    attacked and the adversarial pass of a step, so that V compares features and not draws; the attack is made in eval
    mode with random start, and running statistics see clean and adversarial batches; weight decay is the optimizer's.
    Warm-up is the module's own training. Needs automatic optimization, and batches (inputs, labels, ...). A step costs
    about ``attack_steps + 3`` of the module's own.

    Args:
        target_macs: share of the multiply-accumulates that may be left, in (0, 1); met within 1 %. Half of them
            if nothing else is given.
        target_params: the same for parameters.
        target_channels: the same for channels, of those that may be removed.
        target_latency: the same for the CPU latency, measured. Give one target.
        masks: whether Beta-Bernoulli masks are learned.
        adversarial: whether it trains on adversarial examples, to the end of the fit.
        suppress: λ of V; 0 without. The paper has 1e-4 on CIFAR-10, 0.1 on CIFAR-100, 1e-3 on MNIST.
        beta: price of the KL divergence, spread over the training examples; 2, 1 and 4 there.
        alpha: α of the prior Beta(α, 1).
        temperature: of the relaxed masks.
        mask_lr: step of the masks' Adam, a tenth of it from half of the phase, a hundredth from 80 %.
        eps: largest change that the attack makes to an input value, in the input's own units after normalization.
        attack_step: its step.
        attack_steps: its number of steps.
        bounds: least and greatest input value that it may make; None: any.
        seed: of masks and attacks.
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
        masks: bool = True,
        adversarial: bool = True,
        suppress: float = 1e-4,
        beta: float = 2.0,
        alpha: float = 1e-4,
        temperature: float = 0.1,
        mask_lr: float = 1e-2,
        eps: float = 0.03,
        attack_step: float = 0.007,
        attack_steps: int = 10,
        bounds: tuple[float, float] | None = None,
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
        if suppress < 0 or beta < 0 or alpha <= 0 or temperature <= 0 or mask_lr <= 0:
            raise ValueError(
                f"suppress={suppress} and beta={beta} must not be negative; alpha={alpha}, temperature={temperature} "
                f"and mask_lr={mask_lr} must be positive."
            )
        if suppress and not adversarial:
            raise ValueError(
                f"suppress={suppress} with adversarial=False: vulnerability compares clean with adversarial examples. "
                "Give suppress=0, or adversarial=True."
            )
        self.attack = PGD(eps, attack_step, attack_steps, bounds)
        self.masked, self.trains_to_the_end, self.suppress = masks, adversarial, suppress
        self.beta, self.alpha, self.temperature, self.mask_lr = beta, alpha, temperature, mask_lr
        self._noise = Noise(seed)
        super().__init__(**options_of(ChannelPruning, locals()))

    def reset(self) -> None:
        super().reset()
        self.masks: BetaBernoulli | None = None
        self.read: list[str] = []  # layers that read channels that may go, for V
        self._adam: Adam | None = None
        self._seen_through: dict[str, Gate] = {}
        self._last: dict[str, Tensor] = {}

    def start(self, units: ChannelUnits) -> None:
        taps = units.taps.items() if self.suppress else ()
        self.read = [module_of(name) for name, tap in taps if tap.side == "input"]
        if self.masked:
            device = next(self.root.parameters()).device
            self.masks = BetaBernoulli(int(units.free.sum()), device, self.alpha, self.temperature)

    def gates(self, units: ChannelUnits) -> Mapping[str, Gate]:
        if self.masks is None:
            return {}
        found = bernoulli_gates(self.masks, units)
        self._seen_through = {module_of(name): gate for name, gate in found.items()}
        return found

    def gate_optimizer(self, parameters: list[Tensor]) -> Optimizer:
        self._adam = Adam(parameters, lr=self.mask_lr)
        return self._adam

    def before_step(self, units: ChannelUnits, step: Step) -> None:
        drops = (self.progress >= 0.5) + (self.progress >= 0.8)
        for group in self._adam.param_groups if self._adam is not None else ():
            group["lr"] = self.mask_lr * 0.1**drops

    def score(self, units: ChannelUnits) -> Tensor:
        if self.masks is None:
            norms = {name: w.detach().flatten(1).norm(dim=1) for name, w in units.weights().items()}
            return units.normalize(units.aggregate(norms))
        score = torch.full((units.size,), torch.inf, dtype=torch.float64)
        score[units.free] = self.masks.expected().double().cpu()
        return score

    def folds(self) -> Tensor | None:
        return None if self.masks is None else self.score(self.units).masked_fill(~self.units.free, 1.0)

    def metrics(self) -> Mapping[str, Tensor | float]:
        return self._last

    def loss(self, output: Any, labels: Tensor | None) -> Tensor:
        """The task's loss on an output of `calibration_forward`; override for tasks that `task_loss` does not know."""
        return task_loss(output, labels)

    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        check_takes_batches(pl_module)
        inputs_of(batch)
        super().rehearse(trainer, pl_module, batch)
        calibrate.rehearse(trainer, pl_module, [batch], self.calibration_forward, self.loss)

    def train_on(self, pl_module: LightningModule, step: Callable[[Any], Any], batch: Any) -> Any:
        trainer, (x, rest) = pl_module.trainer, inputs_of(batch)
        self._noise.restart(self.seen, pl_module.global_rank)
        masks, drawn, leaf = (self.masks if self.stage == "soft" else None), None, None
        if masks is not None:
            length = training_length(trainer).batches_per_epoch
            masks.price = self.beta / (length * len(x) * trainer.world_size)
            drawn = masks.draw(self._noise, len(x))
            masks.drawn, leaf = drawn.detach(), drawn.detach().requires_grad_()

        def task(inputs: Tensor) -> Tensor:
            return self.loss(*self.calibration_forward(pl_module, [inputs, *rest]))

        if self.trains_to_the_end:
            scale = loss_scale(trainer)
            with mode(pl_module, False):
                start = 2 * self._noise.uniform(*x.shape, like=x).to(x.dtype) - 1
                attacked = self.attack(lambda inputs: scale * task(inputs), x, start)
        if masks is not None:
            masks.drawn = leaf  # up to the optimizer's step: activation checkpointing runs both passes again
        if self.trains_to_the_end:
            clean, output = layer_inputs(self.root, self.read, lambda: step(batch))
            adversarial, found = layer_inputs(self.root, self.read, lambda: task(attacked))
        else:
            output = step(batch)
            found = loss_of(output)
        if (own := loss_of(output)) is None or found is None:
            return output
        if drawn is not None and leaf is not None:
            # V and the clean loss must not move the masks, so they get their gradient by themselves.
            share = loss_scale(trainer) / self.accumulate
            torch.autograd.backward(drawn, torch.autograd.grad(share * found, leaf, retain_graph=True))
        if not self.trains_to_the_end:
            return output
        total = (own + 2 * found) / 3
        self._last = {"adversarial_loss": found.detach()}
        if self.suppress:
            value = vulnerability(clean, adversarial, self._seen_through if masks is not None else {})
            self._last["vulnerability"] = value.detach()
            total = total + self.suppress * value
        return with_loss(output, total)

    def state(self) -> dict[str, Any]:
        return super().state() | {"read": list(self.read)}

    def restore(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        super().restore(pl_module, state)
        self.read = list(state["read"])
