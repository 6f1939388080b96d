"""From a pruned network to a file that runs elsewhere, measured: `deploy`, and what a network costs: `cost_report`."""

from lightning_prune.export.cost import CostReport, cost_report
from lightning_prune.export.deploy import deploy
from lightning_prune.export.result import Candidate, Deployed

__all__ = ["Candidate", "CostReport", "Deployed", "cost_report", "deploy"]
