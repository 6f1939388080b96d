"""Pruning callbacks for PyTorch Lightning that work on any timm model."""

from lightning_prune.callbacks import (
    ANPVSCallback,
    ChannelPruning,
    ChannelPruningCallback,
    CompactCheckpoint,
    DistillationCallback,
    FPGMCallback,
    KeepZeros,
    LTPCallback,
    MagnitudeCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    PruningCallback,
    SANPCallback,
    ScorePruningCallback,
    SoftFilterPruningCallback,
    ST3Callback,
    STRCallback,
    TASCallback,
    TaylorWeightCallback,
    Trail,
    TrailEntry,
    WeightPruning,
    distill,
    take_shapes,
)
from lightning_prune.channels import (
    ChannelCost,
    ChannelError,
    ChannelGraph,
    PlanError,
    PruningPlan,
    SurgeryError,
    TraceError,
    prune_channels,
)
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.functional.attacks import PGD
from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from lightning_prune.io.describe import own_version
from lightning_prune.masks import Gate, WeightUnits
from lightning_prune.metrics import CompressionRatio, RobustAccuracy, Sparsity, Vulnerability
from lightning_prune.plan.record import plan_of
from lightning_prune.report import SparsityReport, sparsity_report
from lightning_prune.scores import Score
from lightning_prune.zoo.classifier import TimmClassifier

__version__ = own_version()

__all__ = [
    "PGD",
    "ANPVSCallback",
    "ChannelCost",
    "ChannelError",
    "ChannelGraph",
    "ChannelPruning",
    "ChannelPruningCallback",
    "ChannelUnits",
    "CompactCheckpoint",
    "CompressionRatio",
    "DistillationCallback",
    "FPGMCallback",
    "Gate",
    "KeepZeros",
    "LTPCallback",
    "MRTSCallback",
    "MagnitudeCallback",
    "NetworkSlimmingCallback",
    "PlanError",
    "PrunedFileError",
    "PruningCallback",
    "PruningPlan",
    "RobustAccuracy",
    "SANPCallback",
    "ST3Callback",
    "STRCallback",
    "Score",
    "ScorePruningCallback",
    "SoftFilterPruningCallback",
    "Sparsity",
    "SparsityReport",
    "SurgeryError",
    "TASCallback",
    "TaylorWeightCallback",
    "TimmClassifier",
    "TraceError",
    "Trail",
    "TrailEntry",
    "Vulnerability",
    "WeightPruning",
    "WeightUnits",
    "__version__",
    "distill",
    "load_pruned",
    "plan_of",
    "prune_channels",
    "pruned_state_dict",
    "save_pruned",
    "sparsity_report",
    "take_shapes",
]
