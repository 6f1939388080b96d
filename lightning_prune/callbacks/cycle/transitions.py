"""From dense to soft, from soft to pruned, into a checkpoint and out of it: what the life-cycle does, not when."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.families.gates import GateTrainer
from lightning_prune.callbacks.guard import OptimizerGuard, check_diverged
from lightning_prune.callbacks.method import PruningMethod
from lightning_prune.callbacks.training_step import hold_step
from lightning_prune.errors import CalibrationError
from lightning_prune.masks import attach, in_shards
from lightning_prune.support.swap.training_step import unwrap_training_step

# What a fit sets out from: the dense model, a checkpoint's state, or the model that this Trainer has pruned already
# (it goes on with finetune); from its first batch on it is under way.
Start = Literal["dense", "checkpoint", "pruned", "under way"]


class Transitions(PruningMethod):
    """The part of the life-cycle without Lightning's hooks. `PruningCallback` decides when each is called."""

    _guard: OptimizerGuard

    def __init__(self, *args: Any) -> None:
        self._gate_trainer: GateTrainer | None = None
        self._loaded: dict[str, Any] | None = None
        self._fit_from: Start = "dense"
        super().__init__(*args)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self.begin(trainer, pl_module, batch)
        self.start(self.units)
        self._gates = in_shards(self.root, self.gates(self.units))
        self._gate_trainer = GateTrainer(self._gates, self.root, self.gate_optimizer)
        attach(self.root, self._gates)
        self._guard.watch(trainer.optimizers, self.watched())  # there may be other units than before
        self.stage = "soft"
        hold_step(self, pl_module)

    def _remove_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.phases is not None
        if self.stage != "pruned" and self.seen >= self.phases.prune and self.ready(pl_module):
            if self.stage == "dense":
                self._begin(trainer, pl_module, None)
            self._remove(trainer, pl_module)

    @torch.no_grad()
    def _remove(self, trainer: Trainer, pl_module: LightningModule, early: bool = False) -> None:
        self._expire()
        # Scores of gates may be finite all the same, and ranks that hold parts of the weights differ in what is lost.
        check_diverged(self.scored_by(), type(self).__name__, self.seen, trainer=trainer)
        batches = calibrate.calibration_batches(trainer, self.recalibrate_batches)
        soft = self._calibrated(trainer, pl_module, batches, calibrate.recalibrate, calibrate.accuracy)
        removed = self.remove(trainer, pl_module, early)
        self.stage, self._gates, self._gate_trainer = "pruned", {}, None
        hold_step(self, pl_module)
        if removed:
            self._calibrated(trainer, pl_module, batches, calibrate.recalibrate)
            self.settle(trainer, pl_module)
            hard = self._calibrated(trainer, pl_module, batches, calibrate.accuracy)
            self.log_removal(trainer, soft, hard)

    def _calibrated(self, trainer: Trainer, pl_module: LightningModule, batches: list[Any], *functions: Any) -> Any:
        """What the last of some functions of `calibrate` returns. A network that cannot be run is a warning, once."""
        try:
            return [f(trainer, pl_module, batches, self.calibration_forward) for f in functions][-1]
        except CalibrationError as error:
            self.monitor.warn_once(
                "forward", f"BatchNorm statistics are not re-estimated: {error}, or set recalibrate_batches=0."
            )
            return None

    def _before_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" and type(self).gates is not PruningMethod.gates:
            if self._loaded is not None:
                self.prepare(trainer, pl_module)
                self._restore(trainer, pl_module)
            elif self.stage == "soft" and set(self.root.parameters()) <= set(pl_module.parameters()):
                attach(self.root, self._gates)  # a fit of this very model that did not reach its removal
        self._expire()

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state, self._loaded = self._loaded, None
        if state is None:
            return
        self._fit_from, self.seen, self.batches_per_epoch = "checkpoint", state["seen"], state.get("batches_per_epoch")
        self.averages.load(state["averages"])
        self.restore(pl_module, state)
        if state["stage"] == "soft":
            self._begin(trainer, pl_module, None)
            for name, tensor in self.tensors().items():
                tensor.copy_(state["tensors"][name])
            assert self._gate_trainer is not None
            self._gate_trainer.load(state["gates"])
        self.stage = state["stage"]

    def _expire(self) -> None:
        for gate in self._gates.values():
            gate.expire()

    def _release(self, pl_module: LightningModule) -> None:
        self._guard.release()
        unwrap_training_step(pl_module, self.around_step)
        self.release(pl_module)
