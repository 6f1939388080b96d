"""Lightning callbacks: one life-cycle, three families, one file a method."""

from lightning_prune.callbacks.checkpoint import CompactCheckpoint, take_shapes
from lightning_prune.callbacks.distillation.callback import DistillationCallback
from lightning_prune.callbacks.distillation.manual import distill
from lightning_prune.callbacks.families.channels import ChannelPruning
from lightning_prune.callbacks.families.factors import FactorPruning
from lightning_prune.callbacks.families.weights import WeightPruning
from lightning_prune.callbacks.figures import PruningFigures
from lightning_prune.callbacks.lifecycle import PruningCallback
from lightning_prune.callbacks.methods.channels.anp_vs import ANPVSCallback
from lightning_prune.callbacks.methods.channels.from_scratch import PruningFromScratchCallback
from lightning_prune.callbacks.methods.channels.mrts import MRTSCallback
from lightning_prune.callbacks.methods.channels.sanp import SANPCallback
from lightning_prune.callbacks.methods.channels.score import FPGMCallback, ScorePruningCallback
from lightning_prune.callbacks.methods.channels.slimming import NetworkSlimmingCallback
from lightning_prune.callbacks.methods.channels.soft_filter import SoftFilterPruningCallback
from lightning_prune.callbacks.methods.channels.tas import TASCallback
from lightning_prune.callbacks.methods.factors.flop import FLOPCallback
from lightning_prune.callbacks.methods.factors.svd import SVDCallback
from lightning_prune.callbacks.methods.weights.keep_zeros import KeepZeros
from lightning_prune.callbacks.methods.weights.ltp import LTPCallback
from lightning_prune.callbacks.methods.weights.magnitude import MagnitudeCallback
from lightning_prune.callbacks.methods.weights.soft_threshold import STRCallback
from lightning_prune.callbacks.methods.weights.st3 import ST3Callback
from lightning_prune.callbacks.methods.weights.taylor import TaylorWeightCallback
from lightning_prune.callbacks.methods.weights.thresholds import ThresholdPruning
from lightning_prune.callbacks.trail import Trail, TrailEntry

ChannelPruningCallback = ChannelPruning  # the name before both families had one base

__all__ = [
    "ANPVSCallback",
    "ChannelPruning",
    "ChannelPruningCallback",
    "CompactCheckpoint",
    "DistillationCallback",
    "FLOPCallback",
    "FPGMCallback",
    "FactorPruning",
    "KeepZeros",
    "LTPCallback",
    "MRTSCallback",
    "MagnitudeCallback",
    "NetworkSlimmingCallback",
    "PruningCallback",
    "PruningFigures",
    "PruningFromScratchCallback",
    "SANPCallback",
    "ST3Callback",
    "STRCallback",
    "SVDCallback",
    "ScorePruningCallback",
    "SoftFilterPruningCallback",
    "TASCallback",
    "TaylorWeightCallback",
    "ThresholdPruning",
    "Trail",
    "TrailEntry",
    "WeightPruning",
    "distill",
    "take_shapes",
]
