"""Models as commands are given them: a checkpoint, a pruned file, or the folder of a run."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_prune.callbacks import take_shapes
from lightning_prune.callbacks.trail import zero_below_thresholds
from lightning_prune.cli.mistakes import UserError
from lightning_prune.cli.parser import check_file
from lightning_prune.io import load_pruned
from lightning_prune.io.recipe import recipe_of
from lightning_prune.zoo.classifier import TimmClassifier

PRUNED_FILE, RESULTS_FILE = "pruned.safetensors", "results.json"


@dataclass(frozen=True)
class Opened:
    """A network, and what is known of it.

    Attributes:
        network: with its zeros, and the shapes that are left.
        path: the file that it was read from.
        said: what that file is, in words.
        shape: of one input, [C, H, W], or [T] of a text, as the run that wrote the file had it; None: not known.
    """

    network: nn.Module
    path: Path
    said: str
    shape: tuple[int, ...] | None

    def example(self, given: str | None) -> torch.Tensor | None:
        """An input [1, C, H, W] of zeros, of a size such as "3x224x224" or as the run had it; None if neither says.

        Of a run on a text int64 [1, T].
        """
        shape = self.shape if given is None else parse_shape(given)
        kind = torch.int64 if shape is not None and len(shape) == 1 else None
        return None if shape is None else torch.zeros(1, *shape, dtype=kind)


def parse_shape(text: str) -> tuple[int, ...]:
    """The sizes in a text such as "3x224x224".

    Raises:
        UserError: it is no such text.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--input {text}: expected channels, height and width of one image, such as 3x224x224.")
    return tuple(int(part) for part in parts)


def open_model(path: str) -> Opened:
    """Reads the model that a path leads to; nothing of a file is run as code.

    Args:
        path: a checkpoint of `TimmClassifier`, a file that `save_pruned` or a folder that `save_pretrained` wrote,
            "hf-hub:owner/name", or a folder with such files below it: then its newest pruned file, or without one its
            newest checkpoint.

    Raises:
        UserError: there is none, or it cannot be read.
        PrunedFileError: a pruned file does not pass its checks.
    """
    folder = Path(path)
    if path.startswith("hf-hub:") or (folder / "config.json").is_file():
        network = load_pruned(path)
        return Opened(network, folder, f"{recipe_of(network, network)[0]}, a folder for the Hub", None)
    file = _file_in(folder) if folder.is_dir() else check_file(path, "file or folder")
    if file.suffix == ".ckpt":
        network, said = _from_checkpoint(file)
    else:
        network = load_pruned(file)
        said = f"{recipe_of(network, network)[0] or type(network).__name__}, a pruned file"
    return Opened(network, file, said, _shape_beside(file))


def _file_in(folder: Path) -> Path:
    for pattern in (f"**/{PRUNED_FILE}", "**/*.ckpt"):
        files = sorted(folder.glob(pattern), key=lambda file: file.stat().st_mtime)
        if files:
            return files[-1]
    raise UserError(f"there is no {PRUNED_FILE} and no checkpoint in {folder}.")


def _shape_beside(file: Path) -> tuple[int, ...] | None:
    for folder in file.absolute().parents[:2]:
        results = folder / RESULTS_FILE
        if results.is_file():
            shape = json.loads(results.read_text())["input"]
            return shape and tuple(shape)
    return None


def _from_checkpoint(file: Path) -> tuple[nn.Module, str]:
    checkpoint = read_checkpoint(file)
    options = {k: v for k, v in checkpoint.get("hyper_parameters", {}).items() if not k.startswith("_")}
    if "model_name" not in options:
        raise UserError(
            f"{file} is not a checkpoint of TimmClassifier: load it in Python with its own LightningModule."
        )
    module = TimmClassifier(**(options | {"pretrained": False}))
    take_shapes(module, checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    place = f"epoch {checkpoint['epoch']}, step {checkpoint['global_step']}"
    zero_below_thresholds(module, checkpoint)
    return module.model, f"{options['model_name']}, a checkpoint of {place}"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint, read without running code.

    Raises:
        UserError: it is not one.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no checkpoint, or a damaged one ({type(error).__name__}).") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is no Lightning checkpoint: it has no state_dict.")
    return checkpoint
