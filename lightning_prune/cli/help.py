"""Pages of ``--help``: written by hand, but for the names of what there is."""

from __future__ import annotations

import textwrap

from lightning_prune.callbacks import ChannelPruning, PruningCallback, WeightPruning
from lightning_prune.cli.parser import subclasses
from lightning_prune.zoo.data.module import ReplayDataModule

_WIDTH, _INDENT = 120, 28


def pages(text: str) -> str:
    """A page, with the names of methods and data modules in the place of ``{weights}``, ``{channels}``, ``{data}``."""
    return (
        text.replace("{weights}", _listed(_methods(WeightPruning)))
        .replace("{channels}", _listed(_methods(ChannelPruning)))
        .replace("{data}", _wrapped(_ours(ReplayDataModule, "DataModule")))
    )


def _methods(family: type[PruningCallback]) -> list[str]:
    return _ours(family, "Callback")


def _ours(base: type, ending: str) -> list[str]:
    found = [c.__name__ for c in subclasses(base) if c.__module__.startswith("lightning_prune.")]
    bases = (f"InMemory{ending}", f"Image{ending}")
    return sorted(name for name in found if name.endswith(ending) and name not in bases)


def _wrapped(names: list[str]) -> str:
    """Names in the column of what options mean."""
    return textwrap.fill(", ".join(names), _WIDTH - _INDENT).replace("\n", "\n" + " " * _INDENT)


def _listed(names: list[str]) -> str:
    lines = [" "]
    for name in names:
        if len(lines[-1]) + len(name) + 2 > _WIDTH:
            lines.append(" ")
        lines[-1] += f" {name}"
    return "\n".join(lines)
