"""Recurrent layers: counted as PyTorch counts them, and what comes into the first one may go."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.channels import ChannelGraph, prune_channels
from tests.channels.models import random_scores, randomise, silenced

EXAMPLE = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "two directions": (nn.LSTM, {"bidirectional": True}),
    "projected, without bias": (nn.LSTM, {"proj_size": 7, "bias": False}),
    "gru": (nn.GRU, {"bidirectional": True}),
    "rnn": (nn.RNN, {"nonlinearity": "relu"}),
}


class Recurrent(nn.Module):
    """Convolutions, two recurrent layers and a head, over sequences [N, C, T]."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(4, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU())
        self.memory = kind(16, 20, num_layers=2, batch_first=True, **options)
        width = options.get("proj_size", 20) * (2 if options.get("bidirectional") else 1)
        self.hidden, self.head = nn.Linear(width, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.memory(self.stem(x).transpose(1, 2))
        return self.head(self.hidden(y[:, -1]).relu())


class Cells(nn.Module):
    """A cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(4, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU())
        self.cell, self.head = nn.LSTMCell(16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.stem(x).unbind(2)[:3]:
            state = self.cell(step, state)
        return self.head(state[0])


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "cells":
        return randomise(Cells())
    kind, options = KINDS[name]
    return randomise(Recurrent(kind, **options))


def counted(model: nn.Module) -> float:
    """MACs of one sample by PyTorch's counter; on the CPU a fused LSTM hides from it."""
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).to("meta")(EXAMPLE.to("meta"))
    return counter.get_total_flops() / 2 / len(EXAMPLE)


@pytest.mark.parametrize("name", [*KINDS, "cells"])
def test_inputs_of_the_first_layer_go_and_are_counted(name: str) -> None:
    dense = make(name)
    small = copy.deepcopy(dense)
    result = prune_channels(small, EXAMPLE, scores=random_scores(small), ratio=0.5)
    assert small.stem[0].out_channels == 8
    assert result.macs == (counted(dense), counted(small))
    expected = silenced(dense, result.plan).double()(EXAMPLE.double())
    torch.testing.assert_close(small.double()(EXAMPLE.double()), expected, rtol=1e-9, atol=1e-9)
    memory = small.memory if name in KINDS else small.cell
    assert memory.input_size == 8
    result.plan.undo(small)
    assert memory.input_size == 16


def test_a_rewritten_graph_runs_them_too() -> None:
    dense = make("rnn")
    small = copy.deepcopy(dense)
    result = prune_channels(small, EXAMPLE, scores=random_scores(small), ratio=0.5, form="graph")
    torch.testing.assert_close(small(EXAMPLE), silenced(dense, result.plan)(EXAMPLE), rtol=1e-4, atol=1e-5)


def test_a_constant_from_a_folded_scale_is_not_lost_in_a_recurrent_layer() -> None:
    """Nothing takes it up, so such a channel stays unless it is dead."""
    dense = make("gru")
    dense.stem[1].weight.data[:4] = 0.0
    dense.stem[1].bias.data[:4] = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    small = copy.deepcopy(dense)
    prune_channels(small, EXAMPLE, constants="fold")
    assert small.stem[0].out_channels == 14
    torch.testing.assert_close(small(EXAMPLE), dense(EXAMPLE))


def test_the_hidden_state_stays_and_says_so() -> None:
    graph = ChannelGraph.trace(make("lstm"), EXAMPLE)
    reasons = {r for f in graph.frozen if f.tensor.startswith(("memory", "hidden")) for r in f.reasons}
    assert "lstm at memory (LSTM): the hidden state of a recurrent layer" in reasons
    assert not any("without a rule" in r for r in reasons)
