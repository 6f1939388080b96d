"""The graphs of eval and of train mode, labelled as one: what either of them ties is tied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_prune.channels.graph.propagate import call_keys, label_program
from lightning_prune.channels.trace.call import Context, Value
from lightning_prune.channels.trace.parts import largest_parts
from lightning_prune.channels.trace.program import Program
from lightning_prune.channels.trace.record import trace_program
from lightning_prune.channels.trace.training import entries, may_train_apart, same_calls
from lightning_prune.errors import TraceError

OUTPUT = "the network's output"
_MOST_CHANNELS = 0.25  # share of the weights' channels whose freezing by the output is worth a word


@dataclass(frozen=True)
class Traced:
    """The graphs of a model.

    Attributes:
        program: its graph in eval mode.
        apart: whether it does something else in train mode, dropout and BatchNorm's statistics aside.
        training: its graph in train mode, without these two; None where it is not apart, or cannot be traced.
        problem: why it cannot be traced in train mode, or "".
    """

    program: Program
    apart: bool = False
    training: Program | None = None
    problem: str = ""


def trace_modes(model: nn.Module, example_input: Any) -> Traced:
    """Traces a model in eval mode, and in train mode where it does something else there.

    Raises:
        TraceError: it cannot be traced in eval mode; the message names the largest part that can.
    """
    try:
        program = trace_program(model, example_input)
    except TraceError as error:
        part = largest_parts(model, example_input)
        raise TraceError(f"{error}{f'. {part}' if part else ''}") from error.__cause__
    if not may_train_apart(model, program):
        return Traced(program)
    try:
        training = trace_program(model, example_input, training=True, noise=False, statistics=False)
    except TraceError as error:
        return Traced(program, True, None, str(error))
    return Traced(program) if same_calls(program, training) else Traced(program, True, training)


def label_modes(
    traced: Traced, context: Context, model: nn.Module, free_outputs: int
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """Labels both graphs: ({tensor name: value}, notes). Outputs freeze, but for the last few of the eval graph."""
    tensors: dict[str, Value] = {}
    outputs = label_program(traced.program, context, tensors)
    outputs = outputs[: len(outputs) - free_outputs]
    notes = _outputs_note([value for value in outputs if len(value.shape) > 2], context, tensors)
    if traced.training is not None:
        later = Context(context.labels, context.options)
        outputs += label_program(traced.training, later, tensors)
        _join(context, later, traced.program, traced.training)
    elif traced.apart:
        notes += _hold(context, tensors, traced, model)
    for value in outputs:
        for labels in value.axes.values():
            context.labels.freeze(labels, OUTPUT)
    return tensors, tuple(notes)


def _join(context: Context, later: Context, program: Program, training: Program) -> None:
    """Adds what the train graph showed. A layer that the eval graph has too is a place that is known already."""
    context.counts += later.counts
    context.equal_parts += later.equal_parts
    context.picks += later.picks
    context.denominators += later.denominators
    context.approximations += later.approximations
    known = {path for path, _ in context.inputs}
    context.inputs += [(path, labels) for path, labels in later.inputs if path not in known]
    seen = set(call_keys(program, (s.node for s in context.sums)).values())
    keys = call_keys(training, (s.node for s in later.sums))
    context.sums += [s for s in later.sums if keys[s.node] not in seen]


def _hold(context: Context, tensors: dict[str, Value], traced: Traced, model: nn.Module) -> list[str]:
    """Freezes what may feed modules that only train mode reaches: all channels that come in that number anywhere."""
    found = dict(entries(model, traced.program.unused()))
    if not found:
        return []
    vectors = [labels for _, labels in context.inputs]
    vectors += [value.axes[0] for value in tensors.values() if 0 in value.axes]
    why = "may feed a module that only runs in train mode"
    for path, width in found.items():
        fitting = [labels for labels in vectors if len(labels) == width]
        for labels in fitting or vectors:
            context.labels.freeze(labels, f"{why}: {path}")
    return [
        f"layers stay whole that may feed {', '.join(found)}, which only train mode reaches, and in train mode "
        f"{traced.problem}"
    ]


def _outputs_note(maps: list[Value], context: Context, tensors: dict[str, Value]) -> list[str]:
    """One line where much stays as several maps come out of the network that have it."""
    shown = [labels for value in maps for labels in value.axes.values()]
    rows = [v.axes[0] for v in tensors.values() if len(v.shape) > 1 and 0 in v.axes]
    if len(maps) < 2 or not shown or not rows:
        return []
    roots, own = context.labels.find(torch.cat(shown)).unique(), context.labels.find(torch.cat(rows))
    count = int(torch.isin(own, roots).sum())
    if count < _MOST_CHANNELS * len(own):
        return []
    return [
        f"{count} of {len(own)} channels stay, as {len(maps)} feature maps that the network gives have them (or are "
        "sums with them); prune the network with its head on these maps, or let it give fewer"
    ]
