"""Lightning callbacks, one file per method."""

from lightning_prune.callbacks.base import PruningCallback
from lightning_prune.callbacks.channels import ChannelPruningCallback
from lightning_prune.callbacks.ltp import LTPCallback
from lightning_prune.callbacks.magnitude import MagnitudeCallback
from lightning_prune.callbacks.mrts import MRTSCallback, NetworkSlimmingCallback
from lightning_prune.callbacks.trail import Trail, TrailEntry

__all__ = [
    "ChannelPruningCallback",
    "LTPCallback",
    "MRTSCallback",
    "MagnitudeCallback",
    "NetworkSlimmingCallback",
    "PruningCallback",
    "Trail",
    "TrailEntry",
]
