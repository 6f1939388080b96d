"""The data of a command that runs no Trainer: as its run had them, or as ``--data`` says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from lightning_prune.cli.parser import Parser, value_of
from lightning_prune.cli.training import DATA
from lightning_prune.zoo.data.module import ReplayDataModule


def config_beside(path: Path) -> Path | None:
    """The configuration that a run wrote beside a file of its folder, or beside the folder of its checkpoints."""
    found = (folder / "config.yaml" for folder in path.absolute().parents[:2])
    return next((config for config in found if config.is_file()), None)


def add_data(parser: Parser, args: Sequence[str], file: Path) -> dict[str, tuple[type, str]]:
    """Adds ``--data`` to a parser, by default the data of the run that a file lies in, else the digits.

    Returns:
        What `check_names` wants to know of it.
    """
    config = config_beside(file) if value_of(args, "data") is None else None
    content = yaml.safe_load(config.read_text()) if config is not None else None
    default = (content.get("data") if isinstance(content, dict) else None) or DATA
    parser.add_subclass_arguments(ReplayDataModule, "data", fail_untyped=False)
    parser.set_defaults({"data": default})
    return {"data": (ReplayDataModule, str(default["class_path"]))}
