"""How it is pruned in the bench: callbacks by the name that stands in tables."""

from __future__ import annotations

from typing import Any

from lightning_prune import LTPCallback, MagnitudeCallback, ST3Callback, STRCallback, TaylorWeightCallback

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


def callback(method: str, compression: float, epochs: int) -> Any:
    """The method's callback, sparsifying for ``epochs``."""
    maker, options = METHODS[method]
    return maker(target_compression=compression, sparsify=epochs, **options)
