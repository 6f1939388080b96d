"""The mask on a layer's weight: which weights, the gates, and the class swap that puts them in place."""

from lightning_prune.masks.attach import attach, detach, is_attached
from lightning_prune.masks.gates import FadingGate, FixedGate, Gate, HardGate, HeldGate, MaskGate, ShrinkGate, SoftGate
from lightning_prune.masks.gathered import in_shards
from lightning_prune.masks.targets import Target, find_targets, prunable_weights
from lightning_prune.masks.units import WeightUnits

__all__ = [
    "FadingGate",
    "FixedGate",
    "Gate",
    "HardGate",
    "HeldGate",
    "MaskGate",
    "ShrinkGate",
    "SoftGate",
    "Target",
    "WeightUnits",
    "attach",
    "detach",
    "find_targets",
    "in_shards",
    "is_attached",
    "prunable_weights",
]
