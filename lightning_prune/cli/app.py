"""The command ``lightning-prune``: a LightningCLI that trains, prunes, reports and saves; every option from YAML too.

lightning-prune fit                                            # resnet18 on the bundled digits, 10x
lightning-prune fit --model.model_name mixnet_s --data FashionMNISTDataModule --prune.target_sparsity 0.8
lightning-prune fit --prune MRTSCallback --prune.target_macs 0.5    # channels removed instead of weights zeroed
lightning-prune fit --prune MagnitudeCallback --print_config
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_only

from lightning_prune.callbacks import PruningCallback
from lightning_prune.cli.table import BeforeAfter
from lightning_prune.io import save_pruned
from lightning_prune.zoo.classifier import TimmClassifier
from lightning_prune.zoo.data.module import ImageDataModule

PRUNED_FILE = "pruned.safetensors"
PRESET = {"class_path": "lightning_prune.LTPCallback", "init_args": {"warmup": 0.4, "sparsify": 0.4}}


class PruneCLI(LightningCLI):
    """LightningCLI with a pruning callback under ``--prune``, a validation of the start, and a report at the end."""

    pruning: PruningCallback
    summary: BeforeAfter

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.callback_keys.append("prune")
        parser.add_subclass_arguments(PruningCallback, "prune", fail_untyped=False)
        parser.set_defaults({
            "prune": PRESET,
            "data": {"class_path": "lightning_prune.zoo.data.DigitsDataModule", "init_args": {"batch_size": 64}},
        })  # fmt: skip
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.in_chans", "model.in_chans", apply_on="instantiate")
        self.parsers = [*getattr(self, "parsers", []), parser]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, without the preset for another method: jsonargparse would keep what that method also knows."""
        method = _chosen_method(parser, sys.argv[1:] if args is None else args)
        if method is not None and method != PRESET["class_path"]:
            for each in self.parsers:
                each.set_defaults({"prune": {"class_path": method}})
        super().parse_arguments(parser, args)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self.pruning = next(c for c in callbacks if isinstance(c, PruningCallback))
        self.summary = BeforeAfter(self.pruning)
        callbacks.insert(callbacks.index(self.pruning) + 1, self.summary)
        return trainer

    def before_fit(self) -> None:
        """The start is the dense network to compare with, where no validation falls into the warm-up."""
        if not self.config["fit"]["ckpt_path"]:
            self._validate()

    def fit(self, **kwargs: Any) -> None:
        """Fit; after Ctrl-C say how to go on, by `SystemExit`."""
        try:
            self.trainer.fit(**kwargs)
        except SystemExit:  # so recent versions of Lightning end after Ctrl-C; earlier ones return
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
        if self.trainer.state.status == TrainerStatus.INTERRUPTED:
            raise SystemExit(f"\nInterrupted {self._place()}: no {PRUNED_FILE} was written. {self._resume()}")

    def after_fit(self) -> None:
        """Save the pruned file and print the table; `SystemExit` where nothing was pruned."""
        if not self.summary.pruned:
            raise SystemExit(
                f"\nNothing was pruned: the training ended {self._place()}, so no {PRUNED_FILE} was written. "
                f"Train longer (--trainer.max_epochs, --trainer.max_steps). {self._resume()}"
            )
        if self.summary.removed_nothing(self.model):
            raise SystemExit(
                f"\nNothing was pruned: every weight is left, so no {PRUNED_FILE} was written. "
                "Give a target, such as --prune.target_sparsity 0.9 or --prune.target_macs 0.5."
            )
        if self.summary.measured_at != self.trainer.global_step:
            self._validate()
        self._report()

    @rank_zero_only
    def _report(self) -> None:
        path = Path(self.trainer.log_dir or self.trainer.default_root_dir) / PRUNED_FILE
        saved = save_pruned(self.model, path)
        print(f"\n{self.summary.table(self.model, saved.stat().st_size)}\n\nsaved {saved}")

    def _validate(self) -> None:
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

    def _place(self) -> str:
        """Where in its phases the run stands."""
        stages = {"dense": "before the sparsify phase", "soft": "in the sparsify phase"}
        return stages.get(self.pruning.stage, "in finetune")

    def _resume(self) -> str:
        """The command that goes on from the newest checkpoint."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        folders = [c.dirpath for c in callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
        files = [file for folder in folders for file in Path(folder).glob("*.ckpt")]
        if not files:
            return "No checkpoint was saved yet: start anew."
        config = Path(self.trainer.log_dir or self.trainer.default_root_dir) / "config.yaml"
        options = f" --config {config}" if config.is_file() else ""
        newest = max(files, key=lambda file: file.stat().st_mtime)
        return f"Resume with\n  lightning-prune fit{options} --ckpt_path {newest}"


def _chosen_method(parser: LightningArgumentParser, args: Sequence[str]) -> str | None:
    """The class path under ``prune`` that these arguments and their config files choose; None if they are no job."""
    probe = [a for a in args if not a.startswith("--print_config")]
    out = io.StringIO()
    # printing the configuration checks nothing and runs nothing; what is wrong, the parse in earnest will say
    with redirect_stdout(out), redirect_stderr(io.StringIO()), suppress(SystemExit):
        parser.parse_args([*probe, "--print_config"])
    found = re.search(r"^prune:\n +class_path: (\S+)$", out.getvalue(), re.MULTILINE)
    return found and found[1]


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``lightning-prune``.

    Args:
        args: command line; None reads it from the process.

    Raises:
        SystemExit: jsonargparse is not installed, the arguments are wrong, or nothing was pruned.
    """
    if find_spec("jsonargparse") is None:
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
