"""Lightning callbacks: one life-cycle, two families, one file a method."""

from lightning_prune.callbacks.lifecycle import PruningCallback
from lightning_prune.callbacks.methods.ltp import LTPCallback
from lightning_prune.callbacks.methods.magnitude import MagnitudeCallback
from lightning_prune.callbacks.thresholds import ThresholdPruning
from lightning_prune.callbacks.trail import Trail, TrailEntry
from lightning_prune.callbacks.weights import WeightPruning

__all__ = [
    "LTPCallback",
    "MagnitudeCallback",
    "PruningCallback",
    "ThresholdPruning",
    "Trail",
    "TrailEntry",
    "WeightPruning",
]
