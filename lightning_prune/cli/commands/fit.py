"""``lightning-prune fit``: train, prune, finetune, save, and a table of before and after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerStatus

from lightning_prune.cli.models import PRUNED_FILE, RESULTS_FILE
from lightning_prune.cli.parser import value_of, without
from lightning_prune.cli.table import BeforeAfter
from lightning_prune.cli.training import PruneCLI
from lightning_prune.io import save_pruned

PAGE = """\
usage: lightning-prune fit [options]

Trains a timm model, prunes it in mid-training, finetunes it, saves the pruned model, and prints the dense network and
the pruned one side by side. Without options: resnet18 on the bundled digits, 90 % of the weights zeroed by LTP.

What is pruned:
  --prune METHOD            how; default LTPCallback. Options of a method follow as --prune.OPTION VALUE:
  --prune.target_sparsity S   methods that zero weights: the share that is zero at the end, such as 0.9
  --prune.target_macs S       methods that remove channels: the share of multiply-accumulates left, such as 0.5
                              (also target_params, target_channels, target_latency); LTP: those without a zero weight
  --prune.warmup D            dense training first: epochs (3), a share of the training (0.4) or "300 steps"
  --prune.sparsify D          training up to the removal; finetune takes what is left
  --prune.help=METHOD         all options of a method
  --then METHOD             a second method that zeroes weights, after --prune has removed channels: both in one run
                            and one file; options as --then.OPTION VALUE
Methods that zero weights:
{weights}
Methods that remove channels:
{channels}

What it is trained on, and how:
  --model.model_name NAME   any timm model; --model.pretrained true loads timm's weights; --model.lr, --model.optimizer
                            (character_transformer: a language model, for --data CharactersDataModule)
  --data MODULE             {data}
                            --data.root FOLDER, --data.image_size 32, --data.batch_size 64; --data.help=MODULE
  --trainer.max_epochs N    10 by default; --trainer.precision, --trainer.devices, --trainer.default_root_dir, ...
  --recipe NAME             a whole experiment by name; options given after it win
  --config FILE             the same from a YAML file; --print_config writes one
  --ckpt_path FILE          go on from a checkpoint
  --help.all                every option of Trainer, model and data

Into the run's folder go pruned.safetensors, results.json, config.yaml and checkpoints/.
Exit code 1: nothing was pruned; 2: an option is wrong, and one line says which.

  lightning-prune fit --model.model_name mobilenetv2_100 --data CIFAR10DataModule --prune.target_sparsity 0.8
  lightning-prune fit --prune MRTSCallback --prune.target_macs 0.5 --then LTPCallback --then.target_sparsity 0.8
"""


class FitCLI(PruneCLI):
    """Fit, with a validation of the start, and a report at the end."""

    command = "fit"
    summary: BeforeAfter

    def callbacks_of_ours(self) -> list[Callback]:
        self.summary = BeforeAfter(self.prunings)
        return [self.summary, *super().callbacks_of_ours()]

    def before_fit(self) -> None:
        """The start is the dense network to compare with, where no validation falls into the warm-up."""
        if not self.config["fit"]["ckpt_path"]:
            self._validate()

    def fit(self, **kwargs: object) -> None:
        """Fit; after Ctrl-C say how to go on, by `SystemExit`."""
        try:
            self.trainer.fit(**kwargs)  # type: ignore[arg-type]
        except SystemExit:  # so recent versions of Lightning end after Ctrl-C; earlier ones return
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
        if self.trainer.state.status == TrainerStatus.INTERRUPTED:
            raise SystemExit(f"\nInterrupted {self.summary.place()}: no {PRUNED_FILE} was written. {self._resume()}")

    def after_fit(self) -> None:
        """Save the pruned file and print the table; `SystemExit` where nothing was pruned."""
        if not self.summary.pruned:
            raise SystemExit(
                f"\nNothing was pruned: the training ended {self.summary.place()}, so no {PRUNED_FILE} was written. "
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

    def _report(self) -> None:
        folder = self._folder()  # of every process: Lightning asks the first one for it
        if not self.trainer.is_global_zero:
            return
        saved = save_pruned(self.model, folder / PRUNED_FILE)
        size = saved.stat().st_size
        (folder / RESULTS_FILE).write_text(json.dumps(self.summary.results(self.model, size), indent=1))
        print(f"\n{self.summary.table(self.model, size)}\n\nsaved {saved}")

    def _folder(self) -> Path:
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def _validate(self) -> None:
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

    def _resume(self) -> str:
        """The command that goes on from the newest checkpoint."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        folders = [c.dirpath for c in callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
        files = [file for folder in folders for file in Path(folder).glob("*.ckpt")]
        if not files:
            return "No checkpoint was saved yet: start anew."
        config = self._folder() / "config.yaml"
        options = f" --config {config}" if config.is_file() else ""
        newest = max(files, key=lambda file: file.stat().st_mtime)
        return f"Resume with\n  lightning-prune fit{options} --ckpt_path {newest}"


def run(args: Sequence[str]) -> None:
    """Runs ``fit`` with these options."""
    FitCLI(
        with_recipe(args),
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"max_epochs": 10, "log_every_n_steps": 5},
    )


def with_recipe(args: Sequence[str]) -> list[str]:
    """The same arguments with a recipe's file, first, in the place of its name."""
    name = value_of(args, "recipe")
    if name is None:
        return list(args)
    from lightning_prune.recipes import recipe_path

    return ["--config", str(recipe_path(name)), *without(args, "recipe")]
