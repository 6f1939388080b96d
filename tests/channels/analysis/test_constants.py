"""Channels that are dead, constants that are left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune.channels import ChannelError, ChannelGraph, PlanError, prune_channels, recalibrate
from lightning_prune.channels.analysis.constants import constants
from tests.channels.models import Branches, Chain, OptionA, randomise

EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def kill(norm: nn.BatchNorm2d, channels: list[int], shift: float = 0.0) -> None:
    """Scale factor zero, and a shift."""
    with torch.no_grad():
        norm.weight[channels] = 0.0
        norm.bias[channels] = shift


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dead_channels_go_and_the_function_stays(dtype: torch.dtype) -> None:
    model = randomise(Chain())
    kill(model.features[1], [1, 4])
    kill(model.features[4], [0, 3, 11])
    model.to(dtype)
    before = model(EXAMPLE.to(dtype))
    prune_channels(model, EXAMPLE.to(dtype))
    assert [model.features[i].out_channels for i in (0, 3, 6)] == [6, 9, 6]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(model(EXAMPLE.to(dtype)), before, rtol=tolerance, atol=tolerance)


def test_only_what_is_dead_on_every_member_goes() -> None:
    model = randomise(Branches())
    kill(model.left[1], [2, 3])  # the stem's channel 2 still feeds the residual stream
    with pytest.raises(PlanError, match="nothing would be removed"):
        prune_channels(model, EXAMPLE)
    kill(model.stem[1], [2])
    kill(model.shared[1], [2])
    kill(model.right[1], [0])
    graph = ChannelGraph.trace(model, EXAMPLE)
    before = model(EXAMPLE)
    result = prune_channels(model, EXAMPLE, graph=graph)
    assert model.right[0].out_channels == 9
    torch.testing.assert_close(model(EXAMPLE), before, rtol=1e-5, atol=1e-5)
    # the stream: stem, left and shared are one class, and the slice of half the width follows
    assert (model.stem[0].out_channels, model.half) == (11, 5)
    assert int((~result.keep).sum()) == 2


def test_a_zero_scale_with_a_shift_is_not_dead() -> None:
    model = randomise(Chain())
    kill(model.features[1], [1], shift=0.5)
    with pytest.raises(PlanError, match="nothing would be removed"):
        prune_channels(model, EXAMPLE)
    kill(model.features[1], [1], shift=-0.5)  # ReLU turns this one into zero
    before = model(EXAMPLE)
    prune_channels(model, EXAMPLE)
    assert model.features[0].out_channels == 7
    torch.testing.assert_close(model(EXAMPLE), before, rtol=1e-5, atol=1e-5)


def test_an_activation_that_does_not_map_zero_to_zero_keeps_the_channel_alive() -> None:
    model = randomise(Chain())
    model.features[2] = nn.Sigmoid()
    kill(model.features[1], [1])
    with pytest.raises(PlanError, match="nothing would be removed"):
        prune_channels(model, EXAMPLE)


def test_zero_rows_without_a_norm_are_dead() -> None:
    model = Chain(norm=False).eval()
    with torch.no_grad():
        model.features[0].weight[3] = 0
        model.features[0].bias[3] = 0
    before = model(EXAMPLE)
    prune_channels(model, EXAMPLE)
    assert model.features[0].out_channels == 7
    torch.testing.assert_close(model(EXAMPLE), before, rtol=1e-5, atol=1e-5)


def test_padding_with_zero_channels_does_not_hide_a_live_stream() -> None:
    model = randomise(OptionA())
    kill(model.outer[1], list(range(16)))
    found = constants(model, ChannelGraph.trace(model, EXAMPLE), EXAMPLE)
    graph = ChannelGraph.trace(model, EXAMPLE)
    stem = graph.axes["stem.1.weight"][0]
    assert bool(found.varying[stem[stem >= 0]].all())


class Pointwise(nn.Module):
    """1x1 convolutions: constants can be folded exactly, into a bias or into the statistics of a norm."""

    def __init__(self, padded: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3 if padded else 1, padding=1 if padded else 0, bias=False)
        self.after = nn.BatchNorm2d(6)
        self.third = nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm(self.first(x)))
        return self.third(F.relu(self.after(self.second(x)))).mean((2, 3))


def test_constants_fold_exactly_behind_unpadded_convolutions() -> None:
    model = randomise(Pointwise()).double()
    kill(model.norm, [1, 5], shift=0.7)
    kill(model.after, [0], shift=0.4)
    before = model(EXAMPLE.double())
    result = prune_channels(model, EXAMPLE.double(), constants="fold")
    assert (model.first.out_channels, model.second.out_channels) == (6, 5)
    torch.testing.assert_close(model(EXAMPLE.double()), before, rtol=1e-10, atol=1e-10)
    assert not result.notes


def test_zero_padding_makes_folding_inexact_and_is_said() -> None:
    model = randomise(Pointwise(padded=True)).double()
    kill(model.norm, [1, 5], shift=0.7)
    with pytest.raises(PlanError, match="nothing would be removed"):
        prune_channels(copy.deepcopy(model), EXAMPLE.double(), constants="fold")
    before = model(EXAMPLE.double())
    errors = {}
    for how in ("drop", "fold"):
        small = copy.deepcopy(model)
        result = prune_channels(small, EXAMPLE.double(), keep={"norm": [0, 2, 3, 4, 6, 7]}, constants=how)
        errors[how] = float((small(EXAMPLE.double()) - before).detach().abs().max())
        assert any("zero padding" in note for note in result.notes) == (how == "fold")
    assert 0 < errors["fold"] < 0.5 * errors["drop"]


def test_recalibration_brings_statistics_back_and_leaves_the_rest_alone() -> None:
    model = randomise(Pointwise()).train()
    model.after.eval()
    batches = [torch.randn(16, 3, 12, 12) * 2 + 1 for _ in range(4)]
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert recalibrate(model, batches) == 4
    outputs = torch.stack([model.first(b).transpose(0, 1).flatten(1).mean(1) for b in batches]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, outputs.detach(), rtol=1e-4, atol=1e-4)
    assert model.training
    assert not model.after.training
    assert model.norm.momentum == 0.1
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())
    mean = model.norm.running_mean.clone()
    with pytest.raises(ChannelError, match="no batch"):
        recalibrate(model, [])
    assert torch.equal(model.norm.running_mean, mean)
    with pytest.raises(ChannelError, match="no BatchNorm"):
        recalibrate(nn.Linear(2, 2), batches)
