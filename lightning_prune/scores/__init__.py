"""Scores of channels, one file each: pure functions, and a small class that says what they need. Higher is kept.

Every module here is imported, so a file with `@register("name")` in it is all that a score takes.
"""

from importlib import import_module
from pkgutil import iter_modules

from lightning_prune.scoring.base import GradientScore, Score, ScoreLike, find_score, register, score_names

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["GradientScore", "Score", "ScoreLike", "find_score", "register", "score_names"]
