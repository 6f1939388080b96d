"""Channel surgery: which channels of a model are tied, which are selected, and their exact physical removal."""

from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.prune import prune_channels
from lightning_prune.channels.remove import Pruned
from lightning_prune.errors import ChannelError, PlanError, SurgeryError, TargetError, TraceError
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.batchnorm import recalibrate

__all__ = [
    "ChannelCost",
    "ChannelError",
    "ChannelGraph",
    "PlanError",
    "Pruned",
    "PruningPlan",
    "SurgeryError",
    "TargetError",
    "TraceError",
    "prune_channels",
    "recalibrate",
]
