"""What a network is worth, as torchmetrics: zeros and weights, and how it stands against an adversary."""

from lightning_prune.metrics.robust import RobustAccuracy, Vulnerability
from lightning_prune.metrics.sparsity import CompressionRatio, Sparsity

__all__ = ["CompressionRatio", "RobustAccuracy", "Sparsity", "Vulnerability"]
