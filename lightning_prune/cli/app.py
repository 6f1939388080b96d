"""The command ``lightning-prune``: a LightningCLI that trains, prunes, reports and saves; every option from YAML too.

lightning-prune fit                                            # resnet18 on the bundled digits, 10x
lightning-prune fit --model.model_name mixnet_s --data FashionMNISTDataModule --prune.target_sparsity 0.8
lightning-prune fit --prune MRTSCallback --prune.target_macs 0.5    # channels removed instead of weights zeroed
lightning-prune fit --prune MagnitudeCallback --print_config
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save as to_bytes

from lightning_prune.callbacks import ChannelPruningCallback, PruningCallback
from lightning_prune.io import save_pruned
from lightning_prune.report import sparsity_report
from lightning_prune.zoo.classifier import TimmClassifier
from lightning_prune.zoo.data.module import ImageDataModule

__all__ = ["BeforeAfter", "main"]
PRUNED_FILE = "pruned.safetensors"


class BeforeAfter(Callback):
    """Keeps the validation accuracy of the last dense and of the last pruned network, and shows both in a table.

    Args:
        pruning: the callback of the same trainer that prunes.
        metric: validation metric to compare.
    """

    def __init__(self, pruning: PruningCallback | ChannelPruningCallback, metric: str = "val/acc") -> None:
        self.pruning, self.metric = pruning, metric
        self.before: float | None = None
        self.after: float | None = None
        self.dense_bytes = self.dense_weights = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the dense network."""
        network = getattr(pl_module, "model", pl_module)
        self.dense_bytes = len(to_bytes({k: v.contiguous() for k, v in network.state_dict().items()}))
        self.dense_weights = sparsity_report(pl_module).prunable

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after each validation; the sanity check does not count."""
        score = trainer.callback_metrics.get(self.metric)
        if score is None or trainer.sanity_checking:
            return
        if self.pruning.stage == "dense":
            self.before = float(score)
        elif self.pruning.stage in ("pruned", "compact"):
            self.after = float(score)

    def table(self, model: LightningModule, pruned_bytes: int) -> str:
        """Accuracy, weights, zeros, compression and file size, before and after."""
        report = sparsity_report(model)
        left = self.dense_weights / max(report.prunable - report.zeros, 1)

        def percent(x: float | None) -> str:
            return "-" if x is None else f"{x:.2%}"

        rows = [
            ("", "dense", "pruned"),
            (self.metric, percent(self.before), percent(self.after)),
            ("prunable weights", f"{self.dense_weights:,}", f"{report.prunable:,}"),
            ("zeros among them", "0", f"{report.zeros:,} ({report.sparsity:.2%})"),
            ("compression", "1.00x", f"{left:.2f}x"),
            ("file", f"{self.dense_bytes / 2**20:.2f} MiB", f"{pruned_bytes / 2**20:.2f} MiB"),
        ]
        if isinstance(self.pruning, ChannelPruningCallback):
            numbers = self.pruning.numbers
            rows[3:4] = [
                ("channels", "100.00%", percent(1 - numbers["channels"])),
                ("MACs", "100.00%", percent(numbers["macs"])),
            ]
        width = [max(len(r[i]) for r in rows) for i in range(3)]
        lines = [f"{a:<{width[0]}}  {b:>{width[1]}}  {c:>{width[2]}}" for a, b, c in rows]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


try:
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
except ModuleNotFoundError:  # jsonargparse is an extra
    if not TYPE_CHECKING:
        LightningCLI, LightningArgumentParser = object, object


class PruneCLI(LightningCLI):
    """LightningCLI with a pruning callback under ``--prune``, a validation of the start, and a report at the end."""

    pruning: PruningCallback | ChannelPruningCallback
    summary: BeforeAfter

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # as add_lightning_class_args does, which takes no two base classes
        parser.callback_keys.append("prune")
        parser.add_subclass_arguments((PruningCallback, ChannelPruningCallback), "prune", fail_untyped=False)
        parser.set_defaults({
            "prune": {
                "class_path": "lightning_prune.LTPCallback",
                "init_args": {"target_sparsity": 0.9, "warmup": 0.4, "sparsify": 0.4},
            },
            "data": {"class_path": "lightning_prune.zoo.data.DigitsDataModule", "init_args": {"batch_size": 64}},
        })  # fmt: skip
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_chans", "model.in_chans", apply_on="instantiate")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self.pruning = next(c for c in callbacks if isinstance(c, (PruningCallback, ChannelPruningCallback)))
        self.summary = BeforeAfter(self.pruning)
        callbacks.insert(callbacks.index(self.pruning) + 1, self.summary)
        return trainer

    def before_fit(self) -> None:
        """Without a dense warm-up the start itself is the network to compare with."""
        if not self.pruning.durations[0] and not getattr(self.trainer, "fast_dev_run", False):
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

    @rank_zero_only
    def after_fit(self) -> None:
        """Save the pruned file and print the table."""
        path = Path(self.trainer.log_dir or self.trainer.default_root_dir) / PRUNED_FILE
        saved = save_pruned(self.model, path)
        print(f"\n{self.summary.table(self.model, saved.stat().st_size)}\n\nsaved {saved}")


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``lightning-prune``.

    Args:
        args: command line; None reads it from the process.

    Raises:
        SystemExit: jsonargparse is not installed, or the arguments are wrong.
    """
    if LightningCLI is object:
        raise SystemExit('lightning-prune needs jsonargparse: pip install "lightning-prune[cli]"')
    PruneCLI(
        TimmClassifier,
        ImageDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"max_epochs": 10, "log_every_n_steps": 5},
        args=None if args is None else list(args),
    )


if __name__ == "__main__":
    main()
