"""Pruning callbacks for PyTorch Lightning that work on any timm model."""

from lightning_prune.callbacks import (
    ChannelPruning,
    ChannelPruningCallback,
    CompactCheckpoint,
    FPGMCallback,
    KeepZeros,
    LTPCallback,
    MagnitudeCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    PruningCallback,
    PruningFigures,
    ScorePruningCallback,
    SoftFilterPruningCallback,
    ST3Callback,
    STRCallback,
    TaylorWeightCallback,
    Trail,
    TrailEntry,
    WeightPruning,
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
from lightning_prune.errors import ExportError
from lightning_prune.export import Candidate, CostReport, Deployed, cost_report, deploy
from lightning_prune.io import (
    PrunedFileError,
    load_pruned,
    pruned_info,
    pruned_state_dict,
    push_to_hub,
    save_pretrained,
    save_pruned,
)
from lightning_prune.io.describe import own_version
from lightning_prune.masks import Gate, WeightUnits
from lightning_prune.metrics import CompressionRatio, Sparsity
from lightning_prune.plan.record import plan_of
from lightning_prune.report import SparsityReport, sparsity_report
from lightning_prune.scores import Score
from lightning_prune.zoo.classifier import TimmClassifier

__version__ = own_version()

__all__ = [
    "Candidate",
    "ChannelCost",
    "ChannelError",
    "ChannelGraph",
    "ChannelPruning",
    "ChannelPruningCallback",
    "ChannelUnits",
    "CompactCheckpoint",
    "CompressionRatio",
    "CostReport",
    "Deployed",
    "ExportError",
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
    "PruningFigures",
    "PruningPlan",
    "ST3Callback",
    "STRCallback",
    "Score",
    "ScorePruningCallback",
    "SoftFilterPruningCallback",
    "Sparsity",
    "SparsityReport",
    "SurgeryError",
    "TaylorWeightCallback",
    "TimmClassifier",
    "TraceError",
    "Trail",
    "TrailEntry",
    "WeightPruning",
    "WeightUnits",
    "__version__",
    "cost_report",
    "deploy",
    "load_pruned",
    "plan_of",
    "prune_channels",
    "pruned_info",
    "pruned_state_dict",
    "push_to_hub",
    "save_pretrained",
    "save_pruned",
    "sparsity_report",
    "take_shapes",
]
