"""What a score asks to see of calibration batches: activations where channels are read, and gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels.select.taps import Tap
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.errors import CalibrationError
from lightning_prune.functional.ltp import at_least_float32
from lightning_prune.scoring.base import Score
from lightning_prune.support.modes import mode
from lightning_prune.support.watch import watching

Run = Callable[[Any], "tuple[Any, Tensor | None]"]


def collect(
    score: Score,
    units: ChannelUnits,
    batches: Iterable[Any],
    run: Run,
    scale: float = 1.0,
    module: nn.Module | None = None,
) -> dict[str, Tensor]:
    """The values of a score, averaged over batches; its `combine` makes importance of them.

    The network is in eval mode meanwhile; its weights, their gradients and its statistics stay as they are.

    Args:
        score: what to ask.
        units: the network's channel groups.
        batches: to run on; not touched by a score that needs weights alone.
        run: (output, labels or None) of a batch.
        scale: what the loss is multiplied by meanwhile, as 16-bit training needs it.
        module: what is put in eval mode; None: the network.

    Returns:
        {name: values}, on the network's device.

    Raises:
        CalibrationError: it needs batches, and there is none.
    """
    if score.needs == "weights":
        return dict(score.of_weights(units))
    look = _activations if score.needs == "activations" else _gradients
    totals: dict[str, Tensor] = {}
    count = 0
    with mode(module or units.network, False), torch.compiler.set_stance("force_eager"):
        for batch in batches:
            for name, value in score.of_batch(units, look(score, units, batch, run, scale)).items():
                totals[name] = totals[name] + value if name in totals else value
            count += 1
    if not count:
        raise CalibrationError(
            f"{type(score).__name__} needs {score.needs} on calibration batches and got none. Give prune_channels "
            "batches=..., and a callback a training loader that can be read again"
        )
    return {name: total / count for name, total in totals.items()}


@torch.no_grad()
def _activations(score: Score, units: ChannelUnits, batch: Any, run: Run, scale: float) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def note(name: str, x: Tensor) -> None:
        value = score.of_tap(units.taps[name], _samples_first(x.detach(), units.taps[name]))
        if value is not None:
            found[name] = found[name] + value if name in found else value
            calls[name] = calls.get(name, 0) + 1

    with watching({name: (tap.module, tap.side) for name, tap in units.taps.items()}, note):
        run(batch)
    return {name: value / calls[name] for name, value in found.items()}


@torch.enable_grad()
def _gradients(score: Score, units: ChannelUnits, batch: Any, run: Run, scale: float) -> dict[str, Tensor]:
    """A layer that is called again adds to its values."""
    seen: list[tuple[str, Tensor]] = []

    def note(name: str, x: Tensor) -> Tensor:
        # A tensor of its own for each reader: the gradient by it is what goes through this reader alone.
        own = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        seen.append((name, own))
        return own

    by_weights = score.needs == "weight gradients"
    weights = units.weights() if by_weights else {}
    taps = {} if by_weights else {name: (tap.module, tap.side) for name, tap in units.taps.items()}
    with watching(taps, note), _all_require_grad(weights.values()):
        output, labels = run(batch)
        watched = [*seen, *weights.items()]
        if not watched:
            return {}
        loss = score.loss(output, labels) * scale
        gradients = torch.autograd.grad(loss, [x for _, x in watched], allow_unused=True)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for (name, x), gradient in zip(watched, gradients, strict=True):
            if gradient is None and by_weights:
                continue  # its layer was not called, and the loss says nothing of it
            pair = (x.detach(), torch.zeros_like(x) if gradient is None else gradient)
            x, gradient = (at_least_float32(t) if by_weights else _samples_first(t, units.taps[name]) for t in pair)
            gradient = gradient / scale
            value = score.of_layer(x, gradient) if by_weights else score.of_tap(units.taps[name], x, gradient)
            if value is not None:
                found[name] = found[name] + value if name in found else value
    return found


def _samples_first(x: Tensor, tap: Tap) -> Tensor:
    """[N, C, ...] in float32 or wider; without a batch dim, positions are samples."""
    x = at_least_float32(x)
    return x.movedim(tap.dim, min(1, x.ndim - 1)) if x.ndim > 1 else x.unsqueeze(0)


@contextmanager
def _all_require_grad(tensors: Iterable[Tensor]) -> Iterator[None]:
    frozen = [t for t in tensors if not t.requires_grad]
    try:
        for t in frozen:
            t.requires_grad_(True)
        yield
    finally:
        for t in frozen:
            t.requires_grad_(False)


def run_network(network: Callable[..., Any]) -> Run:
    """Runs a network on batches as loaders give them: (input, labels), or an input alone (a tensor or a dict)."""

    def run(batch: Any) -> tuple[Any, Tensor | None]:
        pair = isinstance(batch, (tuple, list))
        given, labels = (batch[0], batch[1] if len(batch) > 1 else None) if pair else (batch, None)
        output = network(**given) if isinstance(given, Mapping) else network(given)
        return output, labels

    return run
