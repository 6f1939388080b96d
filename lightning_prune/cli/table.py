"""The table at the end of a run: the dense network and the pruned one side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_prune.callbacks import ChannelPruning, FactorPruning, PruningCallback
from lightning_prune.io.recipe import network_of
from lightning_prune.report import sparsity_report
from lightning_prune.support.table import Table, mib, percent

METRIC, BITS = "val/acc", "val/bits"
_STAGES = {"dense": "before the sparsify phase", "soft": "in the sparsify phase"}


class BeforeAfter(Callback):
    """Keeps the validation accuracy of the last dense and of the last pruned network, and shows both in a table.

    What it knows of the dense network goes into checkpoints, for a run that is resumed.

    Args:
        prunings: the callbacks of the same trainer that prune, in their order.
    """

    def __init__(self, prunings: Sequence[PruningCallback]) -> None:
        self.prunings = list(prunings)
        self.before: float | None = None
        self.after: float | None = None
        self.bits: list[float | None] = [None, None]  # per character, of the same two, of a language model
        self.measured_at = -1  # global step of the last validation of the pruned network
        self.dense_bytes = self.dense_weights = 0

    @property
    def pruned(self) -> bool:
        """Whether all removals are behind the network."""
        return all(pruning.stage == "pruned" for pruning in self.prunings)

    def place(self) -> str:
        """Where in its phases the run stands."""
        pruning = next((p for p in self.prunings if p.stage != "pruned"), None)
        if pruning is None:
            return "in finetune"
        return _STAGES[pruning.stage] + (f" of {type(pruning).__name__}" if len(self.prunings) > 1 else "")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the dense network, unless a checkpoint tells."""
        if not self.dense_weights:
            state = network_of(pl_module).state_dict().values()
            self.dense_bytes = sum(t.numel() * t.element_size() for t in state)
            report = sparsity_report(pl_module)
            self.dense_weights = report.prunable + report.removed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after each validation; the sanity check does not count."""
        score, bits = (trainer.callback_metrics.get(name) for name in (METRIC, BITS))
        if score is None or trainer.sanity_checking:
            return
        if all(pruning.stage == "dense" for pruning in self.prunings):
            self.before, self.bits[0] = float(score), _number(bits)
        elif self.pruned:
            self.after, self.bits[1], self.measured_at = float(score), _number(bits), trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """What is known of the dense network."""
        known = {"before": self.before, "bits": self.bits[0]}
        return known | {"dense_bytes": self.dense_bytes, "dense_weights": self.dense_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what the interrupted run knew."""
        self.before, self.bits[0] = state_dict["before"], state_dict.get("bits")
        self.dense_bytes, self.dense_weights = state_dict["dense_bytes"], state_dict["dense_weights"]

    def removed_nothing(self, model: LightningModule) -> bool:
        """Whether no weight is zero and none is gone."""
        report = sparsity_report(model)
        return report.zeros == 0 and report.prunable == self.dense_weights

    def results(self, model: LightningModule, pruned_bytes: int) -> dict[str, Any]:
        """What the table shows, as plain numbers; pairs are dense and pruned, shares are those left."""
        report, example = sparsity_report(model), model.example_input_array
        numbers: dict[str, Any] = {
            METRIC: [self.before, self.after],
            "prunable weights": [self.dense_weights, report.prunable],
            "zeros": report.zeros,
            "sparsity": report.sparsity,
            "compression": self.dense_weights / max(report.prunable - report.zeros, 1),
            "bytes": [self.dense_bytes, pruned_bytes],
            "input": None if example is None else list(example.shape[1:]),  # type: ignore[union-attr]
        }
        if self.bits[1] is not None:
            numbers[BITS] = list(self.bits)
        for pruning in self.prunings:
            if isinstance(pruning, (ChannelPruning, FactorPruning)):
                shares = ("macs", "params", "channels")
                numbers |= {share: pruning.numbers[share] for share in shares if share in pruning.numbers}
        return numbers

    def table(self, model: LightningModule, pruned_bytes: int) -> str:
        """Accuracy, weights, zeros or channels and MACs, compression and file size, before and after."""
        found = self.results(model, pruned_bytes)
        rows = [
            ("", "dense", "pruned"),
            (METRIC, *(percent(share) for share in found[METRIC])),
            ("prunable weights", *(f"{n:,}" for n in found["prunable weights"])),
        ]
        if BITS in found:
            rows.insert(1, ("bits per character", *("" if n is None else f"{n:.3f}" for n in found[BITS])))
        names = {"channels": "removable channels", "macs": "MACs"}
        if any(isinstance(pruning, FactorPruning) for pruning in self.prunings):
            names["params"] = "parameters"
        rows += [(said, "100.00%", percent(found[name])) for name, said in names.items() if name in found]
        if not all(isinstance(pruning, (ChannelPruning, FactorPruning)) for pruning in self.prunings):
            rows.append(("zeros among them", "0", f"{found['zeros']:,} ({found['sparsity']:.2%})"))
        rows.append(("compression", "1.00x", f"{found['compression']:.2f}x"))
        rows.append(("file", *(mib(size) for size in found["bytes"])))
        return str(Table(rows[0], rows[1:]))


def _number(value: Tensor | None) -> float | None:
    return None if value is None else float(value)
