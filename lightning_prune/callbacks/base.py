"""What every pruning method shares: phases, masks, budget, hard prune, finetune, state. One method = one subclass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lightning_prune.callbacks import recalibrate
from lightning_prune.callbacks.finetune import keep_zeros, prune_everywhere
from lightning_prune.callbacks.guard import OptimizerGuard, check_strategy
from lightning_prune.callbacks.logs import Monitor
from lightning_prune.callbacks.method import PruningMethod
from lightning_prune.callbacks.phases import Duration, training_length
from lightning_prune.callbacks.trail import TrailWriter
from lightning_prune.functional import budget
from lightning_prune.masks import Gate, attach, detach, find_targets
from lightning_prune.masks.ltp import KEPT, STATS, TASK


class PruningCallback(PruningMethod, Callback):
    """Base of the unstructured methods: everything but the method, which a subclass states (`PruningMethod`).

    Args:
        target_sparsity: share of prunable weights that are zero after the prune, met to the weight; in [0, 1).
        target_compression: the same as prunable weights / non-zero ones, ≥ 1; give one of the two.
        warmup: dense training first. An int counts epochs, a float is a share of the training, "300 steps" steps.
        sparsify: training under the masks, up to the hard prune; as ``warmup``.
        finetune: training after the prune; None takes what is left.
        include: fnmatch patterns on parameter or module names, whole or from any dot on; None takes every conv and
            linear weight.
        exclude: patterns of weights to leave dense.
        skip_first: leave the stem dense.
        skip_last: leave the classifier dense.
        min_keep: least share of each layer's weights to keep.
        recalibrate_batches: training batches on which BatchNorm statistics are re-estimated after the prune; 0: none.
        max_gap: warn if accuracy on those batches falls by more than this from the soft to the hard network.
        trail: kept shares, e.g. ``[0.5, 0.2, 0.1]``; an ordinary checkpoint is saved at the first validation after
            each is crossed.
        trail_dir: folder of the trail; default ``<log dir>/trail``.
        trail_metric: validation metric noted in the trail; default the first ``val*acc*`` or ``val*`` that is logged.
        histogram_every: log weight histograms every that many epochs to loggers that can (costs a second for 10 M
            weights); 0: never.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        target_sparsity: float | None = None,
        target_compression: float | None = None,
        warmup: Duration = 0,
        sparsify: Duration = 0.6,
        finetune: Duration | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        skip_first: bool = False,
        skip_last: bool = False,
        min_keep: float = 0.01,
        recalibrate_batches: int = 20,
        max_gap: float = 0.05,
        trail: Sequence[float] | None = None,
        trail_dir: str | None = None,
        trail_metric: str | None = None,
        histogram_every: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= min_keep < 1:
            raise ValueError(f"min_keep={min_keep} is a share of each layer, in [0, 1).")
        self.target_sparsity = budget.one_target(target_sparsity, target_compression)
        self.durations = (warmup, sparsify, finetune)
        self.include, self.exclude = include, exclude
        self.skip_first, self.skip_last = skip_first, skip_last
        self.min_keep = min_keep
        self.recalibrate_batches, self.max_gap = recalibrate_batches, max_gap
        self.monitor = Monitor(histogram_every)
        self.trail = TrailWriter(trail, trail_dir, trail_metric) if trail else None
        self._guard = OptimizerGuard(self._expire)
        self._gates: list[Gate] = []
        self._loaded: dict[str, Any] | None = None

    # ---- life-cycle -----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called before the model is complete: checks what can be checked, forgets an earlier fit."""
        if stage == "fit":
            check_strategy(trainer, type(self).__name__)
            detach(pl_module)
            self.reset()
            self.monitor.reset()
            if self.trail is not None:
                self.trail.entries.clear()
        self._loaded = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called with the model final and any checkpoint's weights loaded: finds the layers, masks a resumed model."""
        self._prepare(pl_module)
        for name, reason in self.skipped:
            if reason not in ("excluded", "not in include", "first or last layer"):
                rank_zero_warn(f"{type(self).__name__} leaves {name} dense: {reason}.")

    def _prepare(self, pl_module: LightningModule) -> None:
        self.targets, self.skipped = find_targets(
            pl_module, self.include, self.exclude, self.skip_first, self.skip_last
        )
        numels = [t.numel for t in self.targets]
        self.floors = budget.floors(numels, self.min_keep)
        if self.target_sparsity is not None:
            keep = budget.keep_count(self.numel, 1 - self.target_sparsity)
            budget.check_feasible([t.name for t in self.targets], numels, self.floors, keep)
        if self._loaded is not None:
            state, self._loaded = self._loaded, None
            self._restore(state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the length of the training is known: resolves the phases, starts watching the optimizers."""
        phases = self.enter(trainer)
        self._guard.watch(trainer.optimizers, [t.param for t in self.targets])
        if self.stage != "pruned" and self.seen >= phases.prune:
            self._prune(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called before each batch: sets the masks when the sparsify phase begins."""
        assert self.phases is not None
        if self.stage == "dense" and self.phases.at(self.seen) == "sparsify":
            self._begin()
        self._guard.new_batch()
        self._expire()
        if self.stage == "soft":
            # Last layers first: their weights were the last that the optimizer wrote, the first ones are needed next.
            for target, gate in zip(reversed(self.targets), reversed(self._gates), strict=True):
                gate.renew(target.param)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called after unscaling and all-reduce, before clipping: gradients become the method's, thresholds learn."""
        self._guard.transformed(optimizer)
        if self.stage == "dense":
            return
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        ready = [t.param.grad is not None and id(t.param) in mine for t in self.targets]
        if self.stage == "pruned":
            keep_zeros(t.param for t, r in zip(self.targets, ready, strict=True) if r)
            return
        count = trainer._logger_connector.should_update_logs
        for i, (target, gate) in enumerate(zip(self.targets, self._gates, strict=True)):
            if ready[i]:
                assert target.param.grad is not None
                self.stats[i] = gate.step_(target.param, target.param.grad, count)
        # A loss-scaling overflow gives non-finite sums; the scaler skips the weights' step, and so do the thresholds.
        finite = torch.isfinite(self.stats[:, TASK])
        active = torch.tensor(ready, device=self.stats.device) & finite & finite.all()
        self.learn(self.stats, active)
        self._expire()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each batch: counts it, prunes when the sparsify phase is over, logs."""
        assert self.phases is not None
        self.seen += 1
        if self.stage != "pruned" and self.seen >= self.phases.prune:
            self._prune(trainer, pl_module)
        if trainer._logger_connector.should_update_logs:
            self.monitor.log_step(self, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after validation, before checkpoints: per-layer numbers, warnings, zeros that came back."""
        self.monitor.log_epoch(self, trainer)
        if self.stage == "pruned":
            self._check_zeros()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when training ends, early too: whatever is soft becomes hard."""
        if self.stage == "dense":
            self.warn_still_dense()
        if self.stage == "soft":
            rank_zero_warn(
                f"Training ended in the sparsify phase, at {self.progress:.0%} of it: the model is pruned with the "
                "thresholds learned so far, without finetune and short of the target. Its checkpoints resume the phase."
            )
            self._prune(trainer, pl_module, to_target=False)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called at the end of fit: the module is a plain model again."""
        self._release(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called at the end of every run that does not raise."""
        self._release(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Called when a run raises: the masks come off, weights stay as they are."""
        self._release(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called in fit and alone: evaluation sees the masked weights of a model that a checkpoint left unpruned."""
        self._mask_for_evaluation(trainer, pl_module)
        if self.stage == "soft" and trainer.state.fn == "fit" and not trainer.sanity_checking:
            # Masks move faster than BatchNorm's running averages follow; training itself does not read those.
            few = min(self.recalibrate_batches, max(2, training_length(trainer).batches_per_epoch // 10))
            self._try(recalibrate.recalibrate, trainer, pl_module, recalibrate.calibration_batches(trainer, few))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_validation_start`."""
        self._mask_for_evaluation(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_validation_start`."""
        self._mask_for_evaluation(trainer, pl_module)

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Averaging callbacks exchange the weights around validation: masks are computed anew."""
        self._expire()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after validation: saves a checkpoint of the trail if the kept share has crossed one of its values."""
        self._expire()
        if self.trail is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.trail.visit(self, trainer)

    # ---- steps ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        device = self.targets[0].param.device
        wide = torch.float64 if device.type == "cpu" else torch.float32
        self.stats = torch.zeros(len(self.targets), len(STATS), dtype=wide, device=device)
        self.stats[:, KEPT] = torch.tensor([float(t.numel) for t in self.targets])
        self.start(self.targets)
        self._gates = self.gates()
        attach(self.targets, self._gates)
        self.stage = "soft"

    def _expire(self) -> None:
        if self.stage == "soft":
            for gate in self._gates:
                gate.expire()

    @torch.no_grad()
    def _prune(self, trainer: Trainer, pl_module: LightningModule, to_target: bool = True) -> None:
        if self.stage == "dense":
            self._begin()
        batches = recalibrate.calibration_batches(trainer, self.recalibrate_batches)
        self._try(recalibrate.recalibrate, trainer, pl_module, batches)
        soft = self._try(recalibrate.accuracy, trainer, pl_module, batches)
        masks = self.final_masks(to_target)
        self.final_thresholds = self.thresholds().clone()
        detach(pl_module)
        prune_everywhere(trainer, self.targets, masks)
        self.stage, self._gates = "pruned", []
        self.zeros_at_prune = self.layer_zeros()
        self._try(recalibrate.recalibrate, trainer, pl_module, batches)
        hard = self._try(recalibrate.accuracy, trainer, pl_module, batches)
        self.monitor.log_prune(self, trainer, soft, hard)
        zeros = sum(self.zeros_at_prune)
        dead = zeros - sum(m.numel() - int(m.sum()) for m in masks)
        if dead:
            rank_zero_warn(
                f"{dead} kept weights are exactly zero (layers initialised to zero?) and count as pruned from here on: "
                "train them first, with a longer warmup."
            )
        rank_zero_info(
            f"{type(self).__name__}: pruned {zeros:,} of {self.numel:,} weights "
            f"({zeros / self.numel:.2%}, {self.numel / max(self.numel - zeros, 1):.2f}x)."
        )

    def _try(self, function: Callable[..., Any], trainer: Trainer, pl_module: LightningModule, batches: Any) -> Any:
        """Run the network on calibration batches; one that cannot be called is a warning, not the end of the fit."""
        try:
            return function(trainer, pl_module, batches, self.calibration_forward)
        except Exception as error:
            self.monitor.warn_no_forward(error)
            return None

    def _check_zeros(self) -> None:
        now = self.layer_zeros()
        lost = [f"{t.name} ({b - a})" for t, a, b in zip(self.targets, now, self.zeros_at_prune, strict=True) if a < b]
        if lost:
            raise RuntimeError(
                f"Pruned weights came back in {', '.join(lost[:5])}: something other than the gradient moves them "
                "(an optimizer with added noise, or weights written to directly). Use a plain optimizer in finetune."
            )

    def _mask_for_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            if self._loaded is not None:
                self._prepare(pl_module)
            elif self.stage == "soft" and {t.param for t in self.targets} <= set(pl_module.parameters()):
                attach(self.targets, self._gates)  # a fit of this very model that did not reach its prune
        self._expire()

    def _release(self, pl_module: LightningModule) -> None:
        self._guard.release()
        detach(pl_module)

    # ---- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, numbers and strings, loadable with ``weights_only=True``. No masks: finetune reads zeros."""
        trail = {} if self.trail is None else {"trail": self.trail.state()}
        return self.state() | trail

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called before the model is final; the state is put in place when it is."""
        self._loaded = state_dict

    def _restore(self, state: dict[str, Any]) -> None:
        self.check_names(state["names"])
        self.seen = state["seen"]
        if self.trail is not None and "trail" in state:
            self.trail.load(state["trail"])
        if state["stage"] == "soft":
            self._begin()
            self.load_tensors(state["tensors"])
        self.stage = state["stage"]
        if self.stage == "pruned":
            self.zeros_at_prune = self.layer_zeros()
