"""``lightning-prune rethink``: is a pruned network worth its weights, or only its widths?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from lightning_prune.cli.data import add_data, config_beside
from lightning_prune.cli.mistakes import UserError
from lightning_prune.cli.models import Opened, open_model
from lightning_prune.cli.parser import PROGRAM, Parser, check_names
from lightning_prune.io.recipe import recipe_of
from lightning_prune.rethinking import Arm, rethink
from lightning_prune.zoo.classifier import TimmClassifier
from lightning_prune.zoo.data.module import ReplayDataModule

PAGE = """\
usage: lightning-prune rethink PATH [options]

Trains what is left of a network whose channels were pruned, three times for each seed, and shows their test accuracy
side by side (Liu et al., arXiv 1810.05270): the weights that it inherits, finetuned; random ones over the epochs of the
dense training (Scratch-E); and over as many as cost what the dense training did (Scratch-B).

  PATH                      a compact file (.safetensors), a checkpoint (.ckpt), or the folder of a run. Model, data
                            and optimizer are those of its run's config.yaml, where that lies beside it
  --epochs N                of the dense training; default: the run's trainer.max_epochs
  --finetune N              epochs of the inherited weights; default: a quarter of --epochs
  --lr RATE                 of random weights; default: the run's, else 0.001
  --finetune_lr RATE        of inherited weights; default: a tenth of --lr
  --seeds N,N,N             one comparison each; default 0
  --cap X                   most epochs of Scratch-B, as a multiple of --epochs; the paper's for ImageNet is 2
  --data MODULE             {data}
                            --data.root FOLDER, --data.image_size 32, --data.batch_size 64
  --input CxHxW             size of one image, such as 3x224x224; files of a run know it

  lightning-prune rethink lightning_logs/version_0 --epochs 160 --finetune 40 --seeds 0,1,2
"""


def run(args: Sequence[str]) -> None:
    """Trains, and prints the comparison."""
    parser = Parser(prog=f"{PROGRAM} rethink")
    parser.add_argument("path", type=str)
    for name, kind in (("epochs", int), ("finetune", int), ("lr", float), ("finetune_lr", float), ("cap", float)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--seeds", type=str, default="0")
    parser.add_argument("--input", type=str)
    check_names(args, [*parser.names(), "--data"], {"data": (ReplayDataModule, "null")})
    if not args or args[0].startswith("--"):
        raise UserError("rethink needs the path of a pruned model first, such as lightning_logs/version_0.")
    opened = open_model(args[0])
    check_names(args, parser.names(), add_data(parser, args, opened.path))
    given = parser.parse_args(list(args))
    seeds, (settings, longest) = _seeds(given.seeds), _of_run(opened)
    epochs = longest if given.epochs is None else given.epochs
    if epochs is None:
        raise UserError(f"no config.yaml beside {opened.path} tells how long it was trained: give --epochs.")
    example = opened.example(given.input)
    if example is None:
        raise UserError(f"{opened.path} does not tell the size of an image: give --input, such as 3x224x224.")

    def data(seed: int) -> ReplayDataModule:
        module: ReplayDataModule = parser.instantiate_classes(given).data
        module.seed = seed
        return module

    found = rethink(
        opened.network, _maker(settings, given.lr, given.finetune_lr, data(0)), _trainer, data, example,
        epochs=epochs, finetune=max(1, epochs // 4) if given.finetune is None else given.finetune, seeds=seeds,
        cap=given.cap,
    )  # fmt: skip
    print(f"{opened.path}: {opened.said}\n\n{found}")


def _maker(
    settings: dict[str, Any], lr: float | None, finetune_lr: float | None, data: ReplayDataModule
) -> Callable[[Arm], TimmClassifier]:
    """What makes the dense network of an arm, with random weights."""
    rate = float(settings.get("lr", 1e-3)) if lr is None else lr
    fixed = settings | {"pretrained": False, "num_classes": data.num_classes, "in_chans": data.in_chans}

    def make(arm: Arm) -> TimmClassifier:
        smaller = rate / 10 if finetune_lr is None else finetune_lr
        return TimmClassifier(**(fixed | {"lr": smaller if arm == "finetuned" else rate}))

    return make


def _of_run(opened: Opened) -> tuple[dict[str, Any], int | None]:
    """Arguments of `TimmClassifier`, and how many epochs a run was trained; as its configuration says, or the file."""
    config: Path | None = config_beside(opened.path)
    content = yaml.safe_load(config.read_text()) if config is not None else None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        epochs = (content.get("trainer") or {}).get("max_epochs")
        return dict(content["model"]), epochs if isinstance(epochs, int) and epochs > 0 else None
    name, kwargs = recipe_of(opened.network, opened.network)
    if name is None:
        raise UserError(f"{opened.path} does not say which timm model it is: call rethink in Python.")
    return {"model_name": name, "model_kwargs": {k: v for k, v in kwargs.items() if k not in _OF_DATA}}, None


_OF_DATA = ("num_classes", "in_chans")


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UserError(f"--seeds {text}: expected whole numbers, such as 0,1,2.")
    return [int(part) for part in parts]


def _trainer(epochs: int) -> Trainer:
    return Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
