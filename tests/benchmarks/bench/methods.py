"""How it is pruned in the bench: callbacks by the name that stands in tables."""

from __future__ import annotations

from typing import Any

from lightning_prune import (
    ChannelPruning,
    DistillationCallback,
    LTPCallback,
    MagnitudeCallback,
    MRTSCallback,
    NetworkSlimmingCallback,
    ScorePruningCallback,
    ST3Callback,
    STRCallback,
    TaylorWeightCallback,
)

METHODS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "LTP": (LTPCallback, {}),
    "LTP, no feedback": (LTPCallback, {"feedback": 0.0}),
    "magnitude": (MagnitudeCallback, {}),
    "magnitude, feedback": (MagnitudeCallback, {"feedback": 1.0}),
    "STR": (STRCallback, {}),
    "ST-3": (ST3Callback, {}),
    "Taylor": (TaylorWeightCallback, {}),
    "Taylor, feedback": (TaylorWeightCallback, {"feedback": 1.0}),
    "one-shot": (MagnitudeCallback, {"schedule": "oneshot"}),
}
HEADS = {"attention": "heads"}  # whole heads of transformers
CHANNELS: dict[str, tuple[type[Any], dict[str, Any]]] = {  # compression is of the MACs here
    "MRTS": (MRTSCallback, {}),
    "Network Slimming": (NetworkSlimmingCallback, {}),
    "MRTS, gates": (MRTSCallback, {"surgery": HEADS}),
    "Taylor score": (ScorePruningCallback, {"surgery": HEADS}),
}
KD = " + KD"
"""After a method's name, "dense" too: taught by a copy of the dense start."""


def names() -> list[str]:
    """All that `callbacks` knows."""
    plain = ["dense", *METHODS, *CHANNELS]
    return [*plain, *(name + KD for name in plain)]


def callbacks(method: str, compression: float, epochs: int) -> list[Any]:
    """The method's callbacks, sparsifying for ``epochs``."""
    plain = method.removesuffix(KD)
    made: list[Any] = [DistillationCallback()] if plain != method else []
    if plain != "dense":
        maker, options = (METHODS | CHANNELS)[plain]
        share = {"target_macs": 1 / compression} if issubclass(maker, ChannelPruning) else {}
        target = {**share, "warmup": 0} if share else {"target_compression": compression}
        made.append(maker(**target, sparsify=epochs, **options))
    return made
