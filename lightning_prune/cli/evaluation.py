"""What ``validate``, ``test`` and ``predict`` share: a model from a checkpoint or a file, and its run's options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_prune.cli.data import config_beside
from lightning_prune.cli.mistakes import UserError
from lightning_prune.cli.parser import check_file, value_of, without
from lightning_prune.cli.quiet import quiet
from lightning_prune.cli.training import PruneCLI
from lightning_prune.io import load_pruned
from lightning_prune.io.recipe import recipe_of

OPTIONS = """\
  FILE                      a checkpoint (.ckpt) or a pruned file (.safetensors). Model, data and method are those of
                            its run's config.yaml, where that lies beside it; the options below override them
  --data MODULE             {data}
                            --data.root FOLDER, --data.image_size 32, --data.batch_size 64; --data.help=MODULE
  --model.model_name NAME   without FILE: a timm model; --model.pretrained true loads timm's weights
  --trainer.OPTION VALUE    devices, precision, accelerator, limit_test_batches, ...
  --config FILE             options from a YAML file
  --help.all                every option of Trainer, model and data
"""


class EvaluateCLI(PruneCLI):
    """Runs a Trainer's evaluation on a checkpoint, or on a file that `save_pruned` wrote."""

    file: Path | None = None

    def __init__(self, args: Sequence[str]) -> None:
        arguments = list(args)
        if arguments and not arguments[0].startswith("-"):
            arguments = [*arguments[1:], "--ckpt_path", arguments[0]]
        path = value_of(arguments, "ckpt_path")
        if path is not None and Path(path).suffix == ".safetensors":
            self.file = check_file(path, "pruned file")
            arguments = [*without(arguments, "ckpt_path"), "--ckpt_path=null"]
        config = config_beside(Path(path)) if path is not None and value_of(arguments, "config") is None else None
        if config is not None:
            print(f"options of the run from {config}")
            arguments = ["--config", str(config), "--trainer.logger=false", "--trainer.callbacks=null", *arguments]
        # Lightning speaks of where it would save, and of callbacks that only training needs.
        with quiet("The dirpath has changed", r".*Please add the following callbacks: \['BeforeAfter'\]"):
            super().__init__(arguments, save_config_callback=None, trainer_defaults={"logger": False})

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        if self.file is not None:
            network = load_pruned(self.file)
            told = recipe_of(network, network)[1]
            for name in ("num_classes", "in_chans"):
                given = getattr(self.datamodule, name)
                if told.get(name, given) != given:
                    raise UserError(
                        f"{self.file} has {name}={told[name]}, but {type(self.datamodule).__name__} has {given}. "
                        "Give the --data that the model was trained on."
                    )
            self.model.model = network
