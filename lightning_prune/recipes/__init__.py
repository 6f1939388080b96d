"""Recipes: whole experiments as configuration files of the command line, by name.

``lightning-prune fit --recipe NAME`` is ``lightning-prune fit --config`` with the file `recipe_path` names.
"""

from __future__ import annotations

from pathlib import Path

from lightning_prune.support.near import did_you_mean

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The configuration file of a recipe.

    Args:
        name: one of `recipe_names`.

    Raises:
        ValueError: there is no such recipe; the message gives near names.
    """
    names = recipe_names()
    if name not in names:
        hint = did_you_mean(name, names, cutoff=0.4) or f"There are: {', '.join(names)}."
        raise ValueError(f"There is no recipe {name!r}. {hint}")
    return _FOLDER / f"{name}.yaml"
