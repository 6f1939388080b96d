"""Pruning callbacks for PyTorch Lightning that work on any timm model."""

from lightning_prune.callbacks import (
    ChannelPruning,
    ChannelPruningCallback,
    FPGMCallback,
    LTPCallback,
    MagnitudeCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    PruningCallback,
    Trail,
    TrailEntry,
    WeightPruning,
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
from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from lightning_prune.masks import Gate, WeightUnits
from lightning_prune.metrics import CompressionRatio, Sparsity
from lightning_prune.report import SparsityReport, sparsity_report
from lightning_prune.zoo.classifier import TimmClassifier

__all__ = [
    "ChannelCost",
    "ChannelError",
    "ChannelGraph",
    "ChannelPruning",
    "ChannelPruningCallback",
    "ChannelUnits",
    "CompressionRatio",
    "FPGMCallback",
    "Gate",
    "LTPCallback",
    "MRTSCallback",
    "MagnitudeCallback",
    "NetworkSlimmingCallback",
    "PlanError",
    "PrunedFileError",
    "PruningCallback",
    "PruningPlan",
    "Sparsity",
    "SparsityReport",
    "SurgeryError",
    "TimmClassifier",
    "TraceError",
    "Trail",
    "TrailEntry",
    "WeightPruning",
    "WeightUnits",
    "load_pruned",
    "prune_channels",
    "pruned_state_dict",
    "save_pruned",
    "sparsity_report",
]
