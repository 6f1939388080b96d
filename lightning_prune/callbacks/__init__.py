"""One file a pruning method; what they share is in `base`."""

from lightning_prune.callbacks.base import PruningCallback
from lightning_prune.callbacks.ltp import LTPCallback
from lightning_prune.callbacks.magnitude import MagnitudeCallback
from lightning_prune.callbacks.trail import Trail, TrailEntry

__all__ = ["LTPCallback", "MagnitudeCallback", "PruningCallback", "Trail", "TrailEntry"]
