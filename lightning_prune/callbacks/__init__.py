"""Lightning callbacks: one life-cycle, two families, one file a method."""

from lightning_prune.callbacks.channels import ChannelPruning
from lightning_prune.callbacks.checkpoint import CompactCheckpoint, take_shapes
from lightning_prune.callbacks.lifecycle import PruningCallback
from lightning_prune.callbacks.methods.keep_zeros import KeepZeros
from lightning_prune.callbacks.methods.ltp import LTPCallback
from lightning_prune.callbacks.methods.magnitude import MagnitudeCallback
from lightning_prune.callbacks.methods.mrts import MRTSCallback
from lightning_prune.callbacks.methods.score import FPGMCallback, ScorePruningCallback
from lightning_prune.callbacks.methods.slimming import NetworkSlimmingCallback
from lightning_prune.callbacks.methods.soft_threshold import STRCallback
from lightning_prune.callbacks.methods.st3 import ST3Callback
from lightning_prune.callbacks.methods.taylor import TaylorWeightCallback
from lightning_prune.callbacks.methods.thresholds import ThresholdPruning
from lightning_prune.callbacks.trail import Trail, TrailEntry
from lightning_prune.callbacks.weights import WeightPruning

ChannelPruningCallback = ChannelPruning  # the name before both families had one base

__all__ = [
    "ChannelPruning",
    "ChannelPruningCallback",
    "CompactCheckpoint",
    "FPGMCallback",
    "KeepZeros",
    "LTPCallback",
    "MRTSCallback",
    "MagnitudeCallback",
    "NetworkSlimmingCallback",
    "PruningCallback",
    "ST3Callback",
    "STRCallback",
    "ScorePruningCallback",
    "TaylorWeightCallback",
    "ThresholdPruning",
    "Trail",
    "TrailEntry",
    "WeightPruning",
    "take_shapes",
]
