"""The one life-cycle: phases, state, logs, release. The only class of the package with Lightning's hooks.

A family (`WeightPruning`, `ChannelPruning`) says what its units are and how they are removed; a method says what they
are worth. Neither overrides a hook of Lightning's.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.cycle.transitions import Transitions
from lightning_prune.callbacks.cycle.turns import check_alone, phases_in_turn
from lightning_prune.callbacks.guard import LastFit, Lockstep, OptimizerGuard, check_strategy, goes_on
from lightning_prune.callbacks.options import naming_near_options
from lightning_prune.callbacks.phases import Phases, carried_over
from lightning_prune.callbacks.step import Step, trained_by
from lightning_prune.callbacks.trainer import beside, count_epoch, writes_logs_now
from lightning_prune.callbacks.training_step import check_automatic, hold_step


class PruningCallback(Transitions, Callback):
    """Base of all callbacks that prune: `WeightPruning` and `ChannelPruning` are what to subclass."""

    def __init__(self, *args: Any) -> None:
        self._guard, self._lockstep = OptimizerGuard(self._after_step), Lockstep()
        self._last_fit: LastFit | None = None
        super().__init__(*args)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = naming_near_options(cls.__init__)  # type: ignore[method-assign]

    # ---- Lightning's hooks ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called before the model is complete: refuses what can be refused, resets an earlier fit."""
        if stage == "fit":
            check_strategy(trainer, type(self).__name__, self.in_shards)
            if self.prunes:
                check_alone(trainer, self)
            self.check(trainer)
            self.release(pl_module)
            pruned = self.stage == "pruned" and self.prunes and goes_on(self._last_fit, trainer, pl_module)
            self._fit_from = "pruned" if pruned else "dense"
            if not pruned:
                self.reset()
            self._last_fit = weakref.ref(trainer), weakref.ref(pl_module)
        self._loaded = None
        self.open(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called with the model final and a checkpoint's weights loaded: takes its state over too."""
        if self.owns_steps:
            check_automatic(pl_module)
        if self._fit_from == "pruned":
            rank_zero_info(f"{type(self).__name__}: the model is pruned already, and this fit goes on with finetune.")
            return
        self.averages.note(pl_module, trained_by(trainer.optimizers))
        self.prepare(trainer, pl_module)
        self._restore(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the length of the training is known: resolves the phases, watches the optimizers."""
        self.accumulate = trainer.accumulate_grad_batches
        self._lockstep.begin(trainer)
        self._restore(trainer, pl_module)  # of weights in shards, which are loaded after `on_fit_start`
        if self._fit_from == "pruned":
            assert self.phases is not None
            self.phases = Phases(min(self.phases.begin, self.seen), min(self.phases.prune, self.seen), self.seen)
        elif self.prunes:
            self.seen, self.batches_per_epoch = carried_over(trainer, self.seen, self.batches_per_epoch)
            self.phases = phases_in_turn(trainer, self, self._fit_from == "checkpoint")
        else:
            self.phases = Phases(0, 0, 0)
        self._guard.watch(trainer.optimizers, self.watched())
        hold_step(self, pl_module)
        if self.removes_at == "batch end":
            self._remove_if_due(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called before each batch: begins the sparsify phase; some families remove here."""
        assert self.phases is not None
        count_epoch(trainer)
        self._guard.new_batch()
        if self._fit_from != "under way":
            self._fit_from = "under way"
            self.averages.note(pl_module, trained_by(trainer.optimizers), beside(trainer, self))
            if self.stage == "dense" and self.prunes:
                with isolate_rng():
                    self.rehearse(trainer, pl_module, calibrate.batch_at_hand(trainer, batch))
        if self.stage == "dense" and self.phases.at(self.seen) != "warmup" and self.ready(pl_module):
            self._begin(trainer, pl_module, calibrate.batch_at_hand(trainer, batch))
        if self.removes_at == "batch start":
            self._remove_if_due(trainer, pl_module)
        if self.stage == "soft":
            self._expire()
            self.before_batch(trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Called before each backward pass, in manual optimization too."""
        self.before_backward(pl_module, loss)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called after unscaling and all-reduce, before clipping."""
        self._guard.announced(optimizer)
        step = Step(optimizer, writes_logs_now(trainer))
        if self.stage == "soft":
            self.before_step(self.units, step)
            if self._gate_trainer is not None:
                self._gate_trainer.step(trainer, step)
            self._expire()
        elif self.stage == "pruned":
            self.hold(step)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer) -> None:
        self._expire()
        if self.stage == "soft":
            self.after_step(self.units, Step(optimizer))
        elif self.stage == "pruned":
            self.held(Step(optimizer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each batch: counts it, removes when the sparsify phase is over, logs."""
        self.seen += 1
        self._lockstep.check(trainer)
        if self.removes_at == "batch end":
            self._remove_if_due(trainer, pl_module)
        if writes_logs_now(trainer):
            self.log_step(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after validation, before checkpoints."""
        if self.stage != "dense":
            self.log_epoch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when training ends, early too: what the phase has come to so far is removed."""
        if self.stage == "dense":
            rank_zero_warn(
                f"Training ended in the warm-up, after {self.seen} batches of which sparsify was to begin after "
                f"{self.phases.begin if self.phases else '?'}: nothing was pruned. Its checkpoints resume the phase."
            )
        elif self.stage == "soft":
            rank_zero_warn(
                f"Training ended in the sparsify phase, at {self.progress:.0%} of it: the model is pruned now, as far "
                "as the phase has come and without finetune. Its checkpoints resume the phase."
            )
            self._remove(trainer, pl_module, early=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called at the end of fit: the module is a plain model again."""
        self._release(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called at the end of every run that does not raise."""
        self._release(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called when a run raises: weights stay as they are."""
        self._release(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called in fit and alone: evaluation sees what training sees, also of a checkpoint from the sparsify phase."""
        self._before_evaluation(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_validation_start`."""
        self._before_evaluation(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_validation_start`."""
        self._before_evaluation(trainer, pl_module)

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Averaging callbacks exchange the weights around validation: masks are computed anew."""
        self._expire()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_validation_batch_start`."""
        self._expire()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.after_evaluation(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, numbers and strings, loadable with ``weights_only=True``."""
        state: dict[str, Any] = {"stage": self.stage, "seen": self.seen, "averages": self.averages.state()}
        state["batches_per_epoch"] = self.batches_per_epoch
        if self.stage == "soft":
            state["tensors"] = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
            state["gates"] = self._gate_trainer.state() if self._gate_trainer is not None else {}
        return state | self.state()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called in a run and after it."""
        self.save(pl_module, checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called before the model is final; the state is put in place when it is."""
        self._loaded = state_dict
