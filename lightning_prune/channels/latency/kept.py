"""Measured times of layers in a file, for each machine, runtime and number of threads."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning_prune.channels.latency.meter import Meter
from lightning_prune.errors import PlanError
from lightning_prune.support.schema import is_object, parse

_CLOCKS, _LAYERS = 1_000, 1_000_000  # most in a file


def clock_name(meter: Meter) -> str:
    """What a time depends on beside the layer: processor, runtime and its version, threads."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    processor = named or platform.processor() or platform.machine()
    return f"{processor}, {meter.runtime} {meter.version}, {meter.threads} threads"


def read_times(path: Path, meter: Meter) -> dict[str, float]:
    """The times in a file that are a meter's, {layer as text: seconds}; empty if there is no file yet.

    Raises:
        PlanError: it holds something else.
    """
    return dict(_all(path).get(clock_name(meter), {}))


def write_times(path: Path, meter: Meter, times: Mapping[str, float]) -> None:
    """Adds times to a file, beside those of other meters; the name never stands for half a file."""
    found = _all(path)
    name = clock_name(meter)
    text = json.dumps(found | {name: found.get(name, {}) | dict(times)}, indent=0, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{uuid4().hex}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _all(path: Path) -> dict[str, dict[str, float]]:
    if not path.exists():
        return {}
    try:
        found = parse(path.read_bytes())
    except (ValueError, OSError) as error:
        raise PlanError(f"{path} holds no times of layers ({error}): delete it, or name another file") from error
    if not is_object(found, most=_CLOCKS) or not all(_are_times(times) for times in found.values()):
        raise PlanError(f"{path} holds no times of layers: delete it, or name another file")
    return found


def _are_times(value: Any) -> bool:
    return is_object(value, most=_LAYERS) and all(type(t) in (int, float) and t > 0 for t in value.values())
