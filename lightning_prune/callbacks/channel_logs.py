"""What a structured method tells: metrics under ``prune/``, per-layer numbers for the logger, warnings, latency."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_prune.callbacks.phases import Phase
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.selector import Choice
from lightning_prune.support.latency import compare_latency

if TYPE_CHECKING:
    from lightning_prune.callbacks.channels import ChannelPruningCallback

_PHASES: dict[Phase, float] = {"warmup": 0.0, "sparsify": 1.0, "finetune": 2.0}


def log_step(callback: ChannelPruningCallback, pl_module: LightningModule, phase: Phase) -> None:
    """Scalars of a training step: shares of MACs and parameters left, of channels gone, the polarisation gap.

    Before the removal they are what the present thresholds would leave.
    """
    numbers = {name: value for name, value in callback.numbers.items() if not math.isnan(value)}
    metrics = {f"prune/{k}": torch.tensor(v, dtype=torch.float32) for k, v in numbers.items() if k != "macs"}
    metrics["prune/phase"] = torch.tensor(_PHASES[phase])
    pl_module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=1)
    pl_module.log("prune/macs", callback.numbers["macs"], prog_bar=True, on_step=True, on_epoch=False, batch_size=1)


def log_choice(trainer: Trainer, factors: ScaleFactors, choice: Choice) -> None:
    """Threshold and kept channels of each layer, for the logger."""
    numbers: dict[str, float] = {}
    for i, (threshold, (kept, _)) in enumerate(zip(choice.thresholds.tolist(), choice.kept, strict=True)):
        name = factors.layers[i][0]
        numbers[f"prune/layer/{name}/threshold"] = threshold
        numbers[f"prune/layer/{name}/channels"] = float(kept)
    _to_loggers(trainer, numbers)


def log_histograms(trainer: Trainer, factors: ScaleFactors) -> None:
    """Scale factors of each norm, for loggers that take histograms."""
    if not trainer.is_global_zero:
        return
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        add: Any = getattr(logger.experiment, "add_histogram", None) if hasattr(logger, "experiment") else None
        for name, param in zip(factors.names, factors.params, strict=True) if add is not None else ():
            add(f"prune/scales/{name}", param.detach().float(), step)


def log_removal(
    callback: ChannelPruningCallback, trainer: Trainer, soft: float | None, hard: float | None, before: nn.Module | None
) -> None:
    """What the removal did: accuracy on the calibration batches and, if asked for, CPU latency."""
    numbers = {f"prune/{k}": v for k, v in callback.numbers.items() if not math.isnan(v)}
    if soft is not None and hard is not None:
        numbers |= {"prune/soft_accuracy": soft, "prune/hard_accuracy": hard}
        if callback.after == "finetune" and soft - hard > callback.max_gap:
            rank_zero_warn(
                f"Removing the channels cost {soft - hard:.1%} of accuracy on {callback.recalibrate_batches} training "
                f"batches ({soft:.1%} before, {hard:.1%} after; max_gap={callback.max_gap}). The scale factors were "
                "not polarised yet: give the sparsify phase more steps or a larger travel, or raise the target."
            )
    if before is not None and trainer.is_global_zero:
        latency = compare_latency(before, callback.network, callback.example, callback.latency_batch)
        numbers |= {"prune/latency_dense_ms": 1e3 * latency.before, "prune/latency_ms": 1e3 * latency.after}
        rank_zero_info(str(latency))
    _to_loggers(trainer, numbers)


def latency_copy(network: nn.Module, batch: int, trainer: Trainer) -> nn.Module | None:
    """A copy of the dense network on the CPU, to time it beside the compact one; None if nobody asked."""
    return copy.deepcopy(network).cpu() if batch and trainer.is_global_zero else None


def warn_frozen(name: str, factors: ScaleFactors) -> None:
    """Say which norms keep all their channels, and why."""
    shown = "; ".join(f"{norm}: {reason}" for norm, reason in list(factors.frozen.items())[:5])
    more = len(factors.frozen) - 5
    rank_zero_warn(
        f"{name} leaves {len(factors.frozen)} BatchNorms whole: {shown}" + (f"; and {more} more." if more > 0 else ".")
    )


def _to_loggers(trainer: Trainer, numbers: dict[str, float]) -> None:
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=step)
