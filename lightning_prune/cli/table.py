"""The table at the end of a run: the dense network and the pruned one side by side."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_prune.callbacks import ChannelPruning, PruningCallback
from lightning_prune.io.recipe import network_of
from lightning_prune.report import sparsity_report
from lightning_prune.support.table import Table, mib, percent

METRIC = "val/acc"


class BeforeAfter(Callback):
    """Keeps the validation accuracy of the last dense and of the last pruned network, and shows both in a table.

    What it knows of the dense network goes into checkpoints, for a run that is resumed.

    Args:
        pruning: the callback of the same trainer that prunes.
    """

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning = pruning
        self.before: float | None = None
        self.after: float | None = None
        self.measured_at = -1  # global step of the last validation of the pruned network
        self.dense_bytes = self.dense_weights = 0

    @property
    def pruned(self) -> bool:
        """Whether the removal is behind the network."""
        return self.pruning.stage == "pruned"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the dense network, unless a checkpoint tells."""
        if not self.dense_weights:
            state = network_of(pl_module).state_dict().values()
            self.dense_bytes = sum(t.numel() * t.element_size() for t in state)
            report = sparsity_report(pl_module)
            self.dense_weights = report.prunable + report.removed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after each validation; the sanity check does not count."""
        score = trainer.callback_metrics.get(METRIC)
        if score is None or trainer.sanity_checking:
            return
        if self.pruning.stage == "dense":
            self.before = float(score)
        elif self.pruned:
            self.after, self.measured_at = float(score), trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """What is known of the dense network."""
        return {"before": self.before, "dense_bytes": self.dense_bytes, "dense_weights": self.dense_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what the interrupted run knew."""
        self.before = state_dict["before"]
        self.dense_bytes, self.dense_weights = state_dict["dense_bytes"], state_dict["dense_weights"]

    def removed_nothing(self, model: LightningModule) -> bool:
        """Whether no weight is zero and none is gone."""
        report = sparsity_report(model)
        return report.zeros == 0 and report.prunable == self.dense_weights

    def table(self, model: LightningModule, pruned_bytes: int) -> str:
        """Accuracy, weights, zeros or channels and MACs, compression and file size, before and after."""
        report = sparsity_report(model)
        left = self.dense_weights / max(report.prunable - report.zeros, 1)
        rows = [
            ("", "dense", "pruned"),
            (METRIC, percent(self.before), percent(self.after)),
            ("prunable weights", f"{self.dense_weights:,}", f"{report.prunable:,}"),
            ("zeros among them", "0", f"{report.zeros:,} ({report.sparsity:.2%})"),
            ("compression", "1.00x", f"{left:.2f}x"),
            ("file", mib(self.dense_bytes), mib(pruned_bytes)),
        ]
        if isinstance(self.pruning, ChannelPruning):
            names = {"channels": "removable channels", "macs": "MACs"}
            rows[3:4] = [(said, "100.00%", percent(self.pruning.numbers[n])) for n, said in names.items()]
        return str(Table(rows[0], rows[1:]))
