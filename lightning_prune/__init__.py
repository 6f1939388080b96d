"""Pruning callbacks for PyTorch Lightning that work on any timm model."""

from lightning_prune.callbacks import (
    ANPVSCallback,
    ChannelPruning,
    ChannelPruningCallback,
    CompactCheckpoint,
    DistillationCallback,
    FactorPruning,
    FLOPCallback,
    FPGMCallback,
    KeepZeros,
    LTPCallback,
    MagnitudeCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    PruningCallback,
    PruningFigures,
    PruningFromScratchCallback,
    SANPCallback,
    ScorePruningCallback,
    SoftFilterPruningCallback,
    ST3Callback,
    STRCallback,
    SVDCallback,
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
from lightning_prune.errors import ExportError
from lightning_prune.export import Candidate, CostReport, Deployed, cost_report, deploy
from lightning_prune.factors import FactorUnits, factorize, plan_factors
from lightning_prune.functional.budget import scratch_budget
from lightning_prune.io import (
    PrunedFileError,
    load_pruned,
    pruned_info,
    pruned_state_dict,
    push_to_hub,
    save_pretrained,
    save_pruned,
)
from lightning_prune.functional.attacks import PGD
from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from lightning_prune.io.describe import own_version
from lightning_prune.masks import Gate, WeightUnits
from lightning_prune.metrics import CompressionRatio, RobustAccuracy, Sparsity, Vulnerability
from lightning_prune.plan.record import plan_of
from lightning_prune.report import SparsityReport, sparsity_report
from lightning_prune.rethinking import Rethinking, rethink
from lightning_prune.scores import Score
from lightning_prune.zoo.classifier import TimmClassifier

__version__ = own_version()

__all__ = [
    "Candidate",
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
    "CostReport",
    "Deployed",
    "DistillationCallback",
    "ExportError",
    "FLOPCallback",
    "FPGMCallback",
    "FactorPruning",
    "FactorUnits",
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
    "PruningFromScratchCallback",
    "PruningPlan",
    "Rethinking",
    "RobustAccuracy",
    "SANPCallback",
    "ST3Callback",
    "STRCallback",
    "SVDCallback",
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
    "cost_report",
    "deploy",
    "distill",
    "factorize",
    "load_pruned",
    "plan_factors",
    "plan_of",
    "prune_channels",
    "pruned_info",
    "pruned_state_dict",
    "push_to_hub",
    "rethink",
    "save_pretrained",
    "save_pruned",
    "scratch_budget",
    "sparsity_report",
    "take_shapes",
]
