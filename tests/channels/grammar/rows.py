"""Steps on tokens and vectors."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.channels.grammar import modules as own
from tests.channels.grammar.steps import BY, WIDTHS, Pick, Value, divisors, step


@step("tokens|vector", build=lambda x, out, bias: nn.Linear(x.channels, out, bias))
def linear(pick: Pick, x: Value) -> dict[str, Any]:
    return {"out": pick((x.channels, *WIDTHS)), "bias": pick((True, False))}


@step("tokens", build=lambda x, **options: own.Attention(x.channels, **options))
def attention(pick: Pick, x: Value) -> dict[str, Any]:
    how, one = pick(("fused", "scaled", "plain")), pick((True, False))
    return {"heads": pick((2, 1)), "width": pick((4, 3)), "how": how, "by": pick(BY), "one": one}


@step("tokens", build=lambda x, heads: own.Itself(x.channels, heads))
def multihead_attention(pick: Pick, x: Value) -> dict[str, Any]:
    return {"heads": pick([1, *(d for d in divisors(x.channels) if d < 4)])}


@step(
    "tokens",
    build=lambda x, heads, hidden, first: nn.TransformerEncoderLayer(
        x.channels, heads, hidden, 0.1, batch_first=True, norm_first=first
    ),
)
def encoder_layer(pick: Pick, x: Value) -> dict[str, Any]:
    heads = pick([1, *(d for d in divisors(x.channels) if d < 4)])
    return {"heads": heads, "hidden": pick(WIDTHS), "first": pick((False, True))}


@step("tokens", build=lambda x, **options: own.Recurrent(inputs=x.channels, **options))
def recurrent(pick: Pick, x: Value) -> dict[str, Any]:
    kind, both = pick(("LSTM", "GRU", "RNN")), pick((False, True))
    return {"kind": kind, "hidden": pick((4, 5)), "layers": pick((1, 2)), "both": both, "last": False}


@step("tokens", gives="vector", build=lambda x, **options: own.Recurrent(inputs=x.channels, **options))
def last_state(pick: Pick, x: Value) -> dict[str, Any]:
    return {"kind": pick(("LSTM", "GRU", "RNN")), "hidden": pick((4, 5)), "layers": 1, "both": False, "last": True}


@step("vector", build=lambda x, **options: own.Cell(inputs=x.channels, **options))
def cell(pick: Pick, x: Value) -> dict[str, Any]:
    return {"kind": pick(("GRUCell", "LSTMCell", "RNNCell")), "hidden": pick((4, 5))}


@step("tokens", build=lambda x: own.Led(x.channels))
def class_token(pick: Pick, x: Value) -> dict[str, Any] | None:
    return {} if x.shape[0] < 80 else None


@step("vector", gives="map", build=lambda x, length: nn.Unflatten(1, (x.channels // length, length)))
def unflatten(pick: Pick, x: Value) -> dict[str, Any] | None:
    found = [d for d in divisors(x.channels) if 1 < d < x.channels]
    return {"length": pick(found)} if found else None


@step("ids", gives="tokens", build=lambda x, out: nn.Embedding(7, out))
def embedding(pick: Pick, x: Value) -> dict[str, Any]:
    return {"out": pick(WIDTHS)}
