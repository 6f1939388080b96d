"""Lightning callbacks, one file per method."""

from lightning_prune.callbacks.base import PruningCallback
from lightning_prune.callbacks.channels import ChannelPruningCallback
from lightning_prune.callbacks.checkpoint import CompactCheckpoint, take_shapes
from lightning_prune.callbacks.methods.ltp import LTPCallback
from lightning_prune.callbacks.methods.magnitude import MagnitudeCallback
from lightning_prune.callbacks.methods.mrts import MRTSCallback, NetworkSlimmingCallback
from lightning_prune.callbacks.trail import Trail, TrailEntry

__all__ = [
    "ChannelPruningCallback",
    "CompactCheckpoint",
    "LTPCallback",
    "MRTSCallback",
    "MagnitudeCallback",
    "NetworkSlimmingCallback",
    "PruningCallback",
    "Trail",
    "TrailEntry",
    "take_shapes",
]
