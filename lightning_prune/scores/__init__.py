"""Importance scores of channels: pure functions of weights, higher is kept."""

from lightning_prune.scores.fpgm import fpgm
from lightning_prune.scores.norm import filter_norm

__all__ = ["filter_norm", "fpgm"]
