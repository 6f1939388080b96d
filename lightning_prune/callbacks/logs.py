"""What a pruning callback tells: metrics under ``prune/``, per-layer tables for the logger, warnings."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.callbacks.method import PruningMethod
from lightning_prune.masks.ltp import HARD_KEPT, IN_BAND, KEPT

_PHASES = {"warmup": 0.0, "sparsify": 1.0, "finetune": 2.0}
_STUCK_LOGS = 5  # logged steps with an empty band before the warning


class Monitor:
    """Logs and warns for one callback; each warning is given once."""

    def __init__(self, histogram_every: int) -> None:
        self.histogram_every = histogram_every
        self.reset()

    def reset(self) -> None:
        """Give every warning anew: another fit begins."""
        self._said: set[str] = set()
        self._empty_band = 0

    def log_step(self, callback: PruningMethod, pl_module: LightningModule) -> None:
        """Scalars of a training step; called only on steps that the logger writes. Counts are exact, not soft."""
        assert callback.phases is not None
        metrics: dict[str, Any] = {"phase": _PHASES[callback.phases.at(callback.seen)]}
        if callback.stage == "soft":
            stats = callback.stats
            counted = torch.where(stats[:, HARD_KEPT].isnan(), stats[:, KEPT], stats[:, HARD_KEPT])
            kept = counted.sum() / callback.numel
            metrics |= {
                "kept": kept,
                "soft_kept": stats[:, KEPT].sum() / callback.numel,
                "band": stats[:, IN_BAND].nansum() / callback.numel,
            }
            metrics |= callback.measures()
            self._warn_if_stuck(callback, float(metrics["band"]))
        elif callback.stage == "pruned":
            kept = torch.tensor(1 - sum(callback.zeros_at_prune) / callback.numel, dtype=torch.float64)
            metrics["kept"] = kept
        else:
            kept = torch.tensor(1.0)
        metrics["compression"] = 1 / kept.clamp_min(1 / callback.numel)
        pl_module.log_dict(
            {f"prune/{k}": torch.as_tensor(v, dtype=torch.float32) for k, v in metrics.items()},
            on_step=True, on_epoch=False, batch_size=1,
        )  # fmt: skip
        pl_module.log("prune/sparsity", (1 - kept).float(), prog_bar=True, on_step=True, on_epoch=False, batch_size=1)

    def log_epoch(self, callback: PruningMethod, trainer: Trainer) -> None:
        """Per-layer sparsity and threshold for the logger (never into ``callback_metrics``), histograms if wanted."""
        if callback.stage == "dense":
            return
        zeros = callback.layer_zeros()
        numbers = {f"prune/layer/{t.name}/sparsity": z / t.numel for t, z in zip(callback.targets, zeros, strict=True)}
        if callback.stage == "soft":
            for target, tau in zip(callback.targets, callback.thresholds().tolist(), strict=True):
                numbers[f"prune/layer/{target.name}/tau"] = tau
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=step)
        self._warn_if_emptying(callback, zeros)
        if self.histogram_every and (trainer.current_epoch + 1) % self.histogram_every == 0 and trainer.is_global_zero:
            for logger in trainer.loggers:
                add: Any = getattr(logger.experiment, "add_histogram", None) if hasattr(logger, "experiment") else None
                for target in callback.targets if add is not None else ():
                    add(f"prune/weights/{target.name}", target.param.detach().float(), step)

    def log_prune(self, callback: PruningMethod, trainer: Trainer, soft: float | None, hard: float | None) -> None:
        """The step from soft to hard, as accuracy on the calibration batches."""
        if soft is None or hard is None:
            return
        numbers = {"prune/soft_accuracy": soft, "prune/hard_accuracy": hard}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        if soft - hard > callback.max_gap:
            rank_zero_warn(
                f"The hard prune cost {soft - hard:.1%} of accuracy on {callback.recalibrate_batches} training batches "
                f"({soft:.1%} soft, {hard:.1%} hard; max_gap={callback.max_gap}). Thresholds had not settled: give the "
                "sparsify phase more steps, or lower the final temperature or the target."
            )

    def warn_no_forward(self, error: Exception) -> None:
        """Say that the module could not be run on a training batch, and what to do."""
        self._warn_once(
            "forward",
            f"BatchNorm statistics are not re-estimated under the masks: the module could not be called on a training "
            f"batch ({type(error).__name__}: {error}). Override `calibration_forward` of the callback, or set "
            "recalibrate_batches=0.",
        )

    def _warn_if_stuck(self, callback: PruningMethod, band: float) -> None:
        self._empty_band = self._empty_band + 1 if band == 0 else 0
        if self._empty_band == _STUCK_LOGS:
            self._warn_once(
                "stuck",
                f"No weight is near its threshold at {callback.progress:.0%} of the sparsify phase, so thresholds have "
                "stopped moving. Raise the temperature.",
            )

    def _warn_if_emptying(self, callback: PruningMethod, zeros: list[int]) -> None:
        for target, count, floor in zip(callback.targets, zeros, callback.floors, strict=True):
            if target.numel - count <= floor and target.numel > floor:
                self._warn_once(
                    f"empty {target.name}",
                    f"{target.name} is about to empty: {target.numel - count} of {target.numel} weights are left, its "
                    f"floor is {floor}. Raise min_keep, exclude it, or lower the target.",
                )

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._said:
            self._said.add(key)
            rank_zero_warn(message)
