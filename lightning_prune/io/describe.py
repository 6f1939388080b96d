"""What a file tells people about the model in it. Nothing is decided by it when the file is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import safetensors
import timm
import torch
from torch import nn

from lightning_prune.plan.plan import PruningPlan
from lightning_prune.report import removed_weights, sparsity_report


def own_version() -> str:
    """The version of this package, from its metadata; "unknown" where it runs from a source tree."""
    try:
        return version("lightning-prune")
    except PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """The versions of what wrote the file."""
    return {
        "lightning_prune": own_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "safetensors": safetensors.__version__,
    }


def sparsity(network: nn.Module, plans: Mapping[str, PruningPlan]) -> dict[str, float | int | None]:
    """The report's totals; a compression without bound (all weights zero) is null, since JSON has no infinity.

    Of a compact model, they count the weights that are left, and "removed" those that are not.
    """
    try:
        report = sparsity_report(network)
    except ValueError:  # no conv or linear weight: nothing to report, and no reason not to save
        return {"prunable": 0, "zeros": 0, "sparsity": 0.0, "compression": None}
    totals: dict[str, float | int | None] = {
        "prunable": report.prunable,
        "zeros": report.zeros,
        "sparsity": report.sparsity,
        "compression": report.compression if math.isfinite(report.compression) else None,
    }
    return totals | ({"removed": removed_weights(report.layers, plans)} if plans else {})
