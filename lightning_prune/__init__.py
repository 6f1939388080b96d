"""Pruning callbacks for PyTorch Lightning that work on any timm model."""

from lightning_prune.callbacks import (
    ChannelPruningCallback,
    LTPCallback,
    MagnitudeCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    PruningCallback,
    Trail,
    TrailEntry,
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
from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from lightning_prune.metrics import CompressionRatio, Sparsity
from lightning_prune.plan.record import plan_of
from lightning_prune.report import SparsityReport, sparsity_report
from lightning_prune.zoo.classifier import TimmClassifier

__all__ = [
    "ChannelCost",
    "ChannelError",
    "ChannelGraph",
    "ChannelPruningCallback",
    "CompressionRatio",
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
    "load_pruned",
    "plan_of",
    "prune_channels",
    "pruned_state_dict",
    "save_pruned",
    "sparsity_report",
]
