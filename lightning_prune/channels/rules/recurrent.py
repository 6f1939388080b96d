"""Rules for recurrent layers: what comes into the first layer may go, the hidden state may not."""

from __future__ import annotations

import math

from lightning_prune.channels.rules.compute import meet
from lightning_prune.channels.rules.registry import rule
from lightning_prune.channels.trace.call import Call, Outcome, Value, values

HIDDEN = "the hidden state of a recurrent layer"


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> Outcome:
    """The last dim of the input meets dim 1 of the first layer's input weights, one for each direction."""
    if "batch_first" not in call.arguments:
        call.freeze_all("packed sequences")
        return tuple(map(Value, call.out_shapes))
    directions = 2 if call["bidirectional"] else 1
    each = len(call["params"]) // (call["num_layers"] * directions)  # tensors of a layer in one direction
    return _recurrent(call, call["params"][: directions * each : each], call["params"])


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(call: Call) -> Outcome:
    """One step of one layer."""
    return _recurrent(call, [call["w_ih"]], [call["w_ih"], call["w_hh"]])


def _recurrent(call: Call, first: list[Value], tensors: list[Value]) -> Outcome:
    """first: the weights that the input meets; tensors: all parameters."""
    x = call["input"]
    last = len(x.shape) - 1
    entering = x.axes.get(last)
    for weight in first:
        meet(call, entering, weight.axes.get(1))
    for value in values(call.arguments):
        for dim, labels in value.axes.items():
            if value is x and dim != last:
                call.freeze(labels, "runs along this dim")
            elif value is not x and not (dim == 1 and any(value is weight for weight in first)):
                call.freeze(labels, HIDDEN)
    call.consumes("input", x, last)
    sizes = [math.prod(v.shape) for v in tensors if len(v.shape) > 1]
    share = sum(math.prod(v.shape) for v in first) / sum(sizes)
    call.costs(entering, share=share)
    call.costs(share=1 - share)
    out = tuple(_held(call, shape) for shape in call.out_shapes)
    return out if len(out) > 1 else out[0]


def _held(call: Call, shape: tuple[int, ...]) -> Value:
    """An output whose channels, the last dim, stay: they are hidden states."""
    labels = call.context.labels.fresh(shape[-1])
    call.freeze(labels, HIDDEN)
    return Value(shape, {len(shape) - 1: labels})
