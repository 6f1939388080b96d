"""Figures of a pruning run, drawn by a callback beside the one that prunes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_prune import plots
from lightning_prune.callbacks.families.channels import ChannelPruning
from lightning_prune.callbacks.families.weights import WeightPruning
from lightning_prune.callbacks.guard import check_strategy
from lightning_prune.callbacks.lifecycle import PruningCallback
from lightning_prune.callbacks.methods.weights.thresholds import ThresholdPruning
from lightning_prune.callbacks.trainer import callbacks_of, log_figures, writes_logs_now
from lightning_prune.plots.figure import new_figure

_WEIGHTS = 20_000  # of a layer that are kept to compare with


class PruningFigures(Callback):
    """Draws what the pruning callback of the same trainer does: to loggers that take figures, and to PNG files.

    Drawn are, as far as they apply: ``over_time`` (what is logged under ``prune/``), ``layers`` (each layer's sparsity
    and threshold), ``weights`` (before against after the hard prune) and ``scales`` (scale factors with thresholds, as
    of the last selection). `lightning_prune.plots` has the calls. TensorBoard shows them under Images. Of several
    callbacks that prune, the first is drawn; after a resume, what came since.

    Args:
        every: epochs between figures; 0: at the end of the fit alone.
        layers: the most layers in ``weights`` and ``scales``, evenly spaced through the network.
        folder: of the files; None: ``<log dir>/figures``.

    Raises:
        ValueError: an argument out of its range; in ``fit``, no callback of the trainer prunes.
        ModuleNotFoundError: matplotlib is not installed.
    """

    def __init__(self, every: int = 0, layers: int = 4, folder: str | None = None) -> None:
        if every < 0 or layers < 1:
            raise ValueError(f"every={every} must be 0 or more epochs, and layers={layers} at least 1.")
        new_figure(1, 1)  # without matplotlib, better now than at the end of a long training
        self.every, self.layers, self.folder = every, layers, folder
        self._reset()

    def _reset(self) -> None:
        self._series: dict[str, list[tuple[float, float]]] = {}
        self._before: dict[str, Tensor] = {}
        self._after: dict[str, Tensor] = {}
        self._thresholds: dict[str, float] = {}
        self._scales: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the callback that prunes."""
        if stage != "fit":
            return
        check_strategy(trainer, type(self).__name__)
        found = [c for c in callbacks_of(trainer) if isinstance(c, PruningCallback) and c.prunes]
        if not found:
            raise ValueError(
                "PruningFigures draws what a pruning callback does, and this trainer has none: add one, such as "
                "LTPCallback(), to callbacks."
            )
        self._pruning = found[0]
        self._reset()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Notes what is logged, and the weights where the phase begins and at the removal."""
        pruning = self._pruning
        if isinstance(pruning, WeightPruning):
            if pruning.stage == "soft" and not self._before:
                self._before = self._weights(pruning)
            elif pruning.stage == "pruned" and self._before and not self._after:
                self._after = self._weights(pruning)
        if writes_logs_now(trainer):
            for name, value in trainer.callback_metrics.items():
                over = name == "prune/soft_kept" and pruning.stage != "soft"  # it keeps its last value
                if name.startswith(("prune/", "val")) and not over:
                    self._add(trainer, name, float(value))
            self._note(trainer, pruning)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, if this epoch is one that is drawn."""
        if self.every and (trainer.current_epoch + 1) % self.every == 0:
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the whole run."""
        self._draw(trainer)

    def figures(self) -> dict[str, Any]:
        """The figures of what was seen so far, by name."""
        found: dict[str, Any] = {}
        if any(name.startswith("prune/") for name in self._series):
            found["over_time"] = plots.over_time(self._series)
        if isinstance(self._pruning, WeightPruning) and self._before:
            pairs = zip(self._pruning.units.targets, self._pruning.layer_zeros(), strict=True)
            shares = {target.name: zeros / target.numel for target, zeros in pairs}
            found["layers"] = plots.layer_sparsity(shares, self._thresholds or None)
        if self._after:
            found["weights"] = plots.weights_before_after(self._before, self._after, self._thresholds or None)
        if self._scales:
            rows, lines = {type(self._pruning).__name__: self._scales}, {type(self._pruning).__name__: self._thresholds}
            found["scales"] = plots.scale_histograms(rows, lines)
        return found

    def _draw(self, trainer: Trainer) -> None:
        folder = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "figures")
        if trainer.is_global_zero:
            log_figures(trainer, self.figures(), folder)

    def _add(self, trainer: Trainer, name: str, value: float) -> None:
        self._series.setdefault(name, []).append((trainer.global_step, value))

    def _note(self, trainer: Trainer, pruning: PruningCallback) -> None:
        """Thresholds and scale factors as they are now, while the method still moves them."""
        if isinstance(pruning, ThresholdPruning):
            taus = pruning.thresholds() if pruning.stage == "soft" else pruning.final_thresholds
            if taus is not None:
                self._thresholds = dict(zip(pruning.units.names, taus.tolist(), strict=True))
                for name, tau in self._thresholds.items() if pruning.stage == "soft" else ():
                    self._add(trainer, f"prune/layer/{name}/tau", tau)
        elif isinstance(pruning, ChannelPruning) and pruning.stage == "soft" and pruning.units.scales is not None:
            factors = pruning.units.scales
            if pruning.selection is None:
                return
            names = [layer[0] for layer in pruning.units.layers]
            sizes = zip(names, factors.by_layer(factors.importance(factors.read())), strict=True)
            self._scales = _spread({name: size.detach().cpu() for name, size in sizes}, self.layers)
            self._thresholds = dict(zip(names, pruning.selection.thresholds.tolist(), strict=True))

    def _weights(self, pruning: WeightPruning) -> dict[str, Tensor]:
        chosen = _spread({target.name: target.param for target in pruning.units.targets}, self.layers)
        return {name: _sample(param) for name, param in chosen.items()}


def _spread(layers: Mapping[str, Any], most: int) -> dict[str, Any]:
    """At most so many layers, evenly spaced, the first and the last among them."""
    names = list(layers)
    if len(names) > most:
        names = [names[i] for i in torch.linspace(0, len(names) - 1, most).round().long().tolist()]
    return {name: layers[name] for name in names}


def _sample(weight: Tensor) -> Tensor:
    """Evenly spaced weights, the same ones at each call, on the CPU."""
    flat = weight.detach().flatten()
    if len(flat) > _WEIGHTS:
        flat = flat[torch.linspace(0, len(flat) - 1, _WEIGHTS, device=flat.device).long()]
    return flat.float().cpu().clone()
