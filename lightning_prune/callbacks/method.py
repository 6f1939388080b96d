"""What a pruning method says, and what a family of methods says. `PruningCallback` decides when each is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.guard import check_diverged
from lightning_prune.callbacks.logs import Monitor
from lightning_prune.callbacks.phases import Duration, Phases
from lightning_prune.callbacks.step import Step
from lightning_prune.masks import Gate
from lightning_prune.support.averages import Averages
from lightning_prune.support.watch import Side

# dense: no unit is touched yet; soft: the sparsify phase; pruned: the units are gone.
Stage = Literal["dense", "soft", "pruned"]


class PruningMethod:
    """The part of a callback without Lightning's hooks.

    Attributes:
        stage: how far the model is.
        seen: completed training batches.
        batches_per_epoch: of each rank; None before the length of the training is known.
        phases: where they lie; None before the length of the training is known.
        units: what the method scores, from the beginning of the sparsify phase on.
        averages: the copies of the model that the user keeps beside it.
        observed: {layer: mean over calibration batches and ranks of what `observe` returned, or `look`}.
        prunes: whether units are removed at all, and not just held.
        removes_at: whether a family removes before an epoch's validation, or at the start of the next batch.
        observes: which side of a layer `observe` gets.
        in_shards: whether the method works on weights whose rows `fully_shard` has split over processes.
        trains_to_the_end: whether `train_on` stands in the finetune phase too.
    """

    prunes = True
    removes_at: Literal["batch end", "batch start"] = "batch end"
    observes: Side = "output"
    in_shards = False
    trains_to_the_end = False
    units: Any
    root: nn.Module  # what the names of gates and observed layers are relative to

    def __init__(
        self,
        warmup: Duration,
        sparsify: Duration,
        finetune: Duration | None,
        recalibrate_batches: int,
        max_gap: float,
        histogram_every: int,
    ) -> None:
        super().__init__()
        self.durations = (warmup, sparsify, finetune)
        self.recalibrate_batches, self.max_gap = recalibrate_batches, max_gap
        self.monitor = Monitor(histogram_every)
        self.reset()

    def reset(self) -> None:
        """Back to the state before any fit."""
        self.stage: Stage = "dense"
        self.seen = 0
        self.batches_per_epoch: int | None = None
        self.phases: Phases | None = None
        self.accumulate = 1
        self.observed: dict[str, Tensor] = {}
        self.averages = Averages()
        self._gates: dict[str, Gate] = {}
        self.monitor.reset()

    @property
    def progress(self) -> float:
        """Position in the sparsify phase, from 0 to 1."""
        return self.phases.progress(self.seen) if self.phases is not None else 0.0

    @property
    def sparsify_steps(self) -> int:
        """Optimizer steps in the sparsify phase, at least 1."""
        if self.phases is None:
            return 1
        return max(1, (self.phases.prune - self.phases.begin) // self.accumulate)

    @property
    def owns_steps(self) -> bool:
        """Whether the method has losses of its own, see `train_on`."""
        return type(self).train_on is not PruningMethod.train_on

    def around_step(
        self, module: LightningModule, step: Callable[..., Any], batch: Any, *rest: Any, **named: Any
    ) -> Any:
        """`train_on`, as `support.swap.training_step` wants it."""
        return self.train_on(module, lambda given: step(given, *rest, **named), batch)

    # ---- what a method says -----------------------------------------------------------------------------------------

    def score(self, units: Any) -> Tensor:
        """Importance of each unit, one value a unit; the highest are kept. The only method that has to be written."""
        raise NotImplementedError(f"{type(self).__name__} does not say what a unit is worth: override score(units).")

    def start(self, units: Any) -> None:
        """Make the method's tensors; called when the sparsify phase begins, and before a resumed run loads them."""

    def gates(self, units: Any) -> Mapping[str, Gate]:
        """Soft masks for the sparsify phase: {name of a parameter, or of a module whose output is meant: gate}."""
        return {}

    def observe(self, name: str, activation: Tensor, labels: Tensor | None) -> Tensor | None:
        """Take statistics of a layer's activation [N, ...] on a calibration batch, before units are scored.

        Returns:
            What to average over batches and ranks into ``self.observed[name]``, or None: the method keeps its own sums.
        """
        return None

    def look(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, Tensor]:
        """Look at calibration batches before units are scored; `observe` says what at, where that is enough.

        Returns:
            {name: mean over this rank's batches}; ``self.observed`` has the means over ranks.
        """
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def note(name: str, activation: Tensor, labels: Tensor | None) -> None:
            value = self.observe(name, activation, labels)
            if value is not None:
                sums[name] = sums[name] + value if name in sums else value.clone()
                counts[name] = counts.get(name, 0) + 1

        if type(self).observe is not PruningMethod.observe:
            batches = calibrate.calibration_batches(trainer, self.recalibrate_batches)
            calibrate.observe(trainer, pl_module, self.sites(), self.observes, note, batches, self.calibration_forward)
        return {name: total / counts[name] for name, total in sums.items()}

    def train_on(self, pl_module: LightningModule, step: Callable[[Any], Any], batch: Any) -> Any:
        """What stands for ``training_step`` in the sparsify phase: losses of the method's own.

        Automatic optimization only; `training_step.loss_of` and `with_loss` take outputs apart and together.

        Args:
            pl_module: the module.
            step: the module's own ``training_step``, as a function of a batch.
            batch: of the training data.

        Returns:
            What ``training_step`` may return.
        """
        return step(batch)

    def before_step(self, units: Any, step: Step) -> None:
        """Called in the sparsify phase before each optimizer step, with gradients unscaled and reduced."""

    def after_step(self, units: Any, step: Step) -> None:
        """Called in the sparsify phase after each step that an optimizer really takes."""

    def tensors(self) -> dict[str, Tensor]:
        """The method's tensors: saved with checkpoints, and restored in place."""
        return {}

    def metrics(self) -> Mapping[str, Tensor | float]:
        """The method's own numbers, by name without ``prune/``; logged in the sparsify phase."""
        return {}

    def gate_optimizer(self, parameters: list[Tensor]) -> Optimizer:
        """The optimizer of what gates learn."""
        return torch.optim.Adam(parameters, lr=0.01)

    def calibration_forward(self, module: LightningModule, batch: Any) -> tuple[Any, Tensor | None]:
        """How to run the network on a training batch: (output, labels or None). Override for unusual batches."""
        return calibrate.forward_first_element(module, batch)

    calibration_forward.guesses = True  # type: ignore[attr-defined]  # what an override is not

    def finite_score(self) -> Tensor:
        """The method's scores.

        Raises:
            DivergenceError: there are none, or some are NaN, because weights of the network are not finite.
        """
        failure: ValueError | None = None
        try:
            score = self.score(self.units)
            if not bool(score.isnan().any()):
                return score
        except ValueError as error:
            failure = error
        check_diverged(self.root.named_parameters(), type(self).__name__, self.seen, failure)
        if failure is not None:
            raise failure
        return score

    def scored(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """The method's scores, after it was shown the calibration batches, if it wants to see them."""
        self.observed = {
            name: trainer.strategy.reduce(value, reduce_op="mean")  # type: ignore[misc]
            for name, value in self.look(trainer, pl_module).items()
        }
        return self.finite_score()

    # ---- what a family says -----------------------------------------------------------------------------------------

    def scored_by(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The parameters that units are scored by, with their names: at the removal they must be finite."""
        return self.root.named_parameters()

    def check(self, trainer: Trainer) -> None:
        """Refuse what this family cannot do; called when a fit is set up."""

    def open(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when any run is set up, before a checkpoint's weights are loaded."""

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called with the model final, before any batch: find what can be found, refuse what cannot be pruned."""

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Set ``units`` and ``root`` for a phase that begins with ``batch``; None on resume."""
        raise NotImplementedError

    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Run the network as the phases to come will, on the first batch: what fails then had better fail now.

        Raises:
            CalibrationError: units cannot be found or scored without it, and it does not run.
        """

    def ready(self, pl_module: LightningModule) -> bool:
        """Whether the sparsify phase may begin; one that may not yet begins with the next batch."""
        return True

    def before_backward(self, pl_module: LightningModule, loss: Tensor) -> None:
        """Called before each backward pass that goes through Lightning."""

    def before_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called before each batch of the sparsify phase."""

    def hold(self, step: Step) -> None:
        """Called before each optimizer step after the removal."""

    def held(self, step: Step) -> None:
        """Called after each step that an optimizer really takes after the removal."""

    def sites(self) -> Mapping[str, nn.Module]:
        """The layers that `observe` is shown, by name."""
        raise NotImplementedError

    def remove(self, trainer: Trainer, pl_module: LightningModule, early: bool) -> bool:
        """Remove units for good; ``early``: the phase was cut short. Returns whether any is gone."""
        raise NotImplementedError

    def settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after a removal, with BatchNorm statistics re-estimated."""

    def log_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scalars of a training step that the logger writes."""

    def log_epoch(self, trainer: Trainer) -> None:
        """Called at epoch ends, from the sparsify phase on: numbers of each layer, and checks."""

    def log_removal(self, trainer: Trainer, soft: float | None, hard: float | None) -> None:
        """What the removal did: accuracy on the calibration batches before and after."""

    def after_evaluation(self, trainer: Trainer) -> None:
        """Called after each validation of a fit."""

    def release(self, pl_module: LightningModule) -> None:
        """Take everything of ours off the module."""

    def watched(self) -> Sequence[nn.Parameter]:
        """Parameters whose gradients must go through Lightning's hooks."""
        return ()

    def state(self) -> dict[str, Any]:
        """What the family adds to a checkpoint."""
        return {}

    def save(self, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint what stands beside the callback's state."""

    def restore(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
