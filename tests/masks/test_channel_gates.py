"""Gates on channels where layers read them: drawn masks, widths, and decisions by what enters a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_prune.masks import Gate, attach, detach
from lightning_prune.masks.bernoulli import BernoulliGate, BetaBernoulli
from lightning_prune.masks.saliency import Listener, SaliencyGate
from lightning_prune.masks.widths import Counts, Part, WidthGate
from lightning_prune.support.noise import Noise

CPU = torch.device("cpu")


class Times(Gate):
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_gates_stand_before_and_behind_a_layer_and_on_its_weight() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU())
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    plain = net[0](x)
    attach(net, {"input of 0": Times(2.0), "0": Times(3.0), "0.weight": Times(5.0)})
    torch.testing.assert_close(net[0](x), 30 * plain)
    attach(net, {"output of 0": Times(3.0)})
    torch.testing.assert_close(net[0](x), 3 * plain)
    detach(net)
    assert torch.equal(net[0](x), plain)
    with pytest.raises(ValueError, match="a gate is for 'input of 7', which is no parameter and no module"):
        attach(net, {"input of 7": Times(1.0)})


def test_masks_are_drawn_an_example_and_expected_elsewhere() -> None:
    masks = BetaBernoulli(2, CPU, alpha=1e-4, temperature=0.1)
    gate = BernoulliGate(masks, torch.tensor([1, -1, 0]), -3, owner=True)
    x = torch.ones(4, 3, 2, 2)
    expected = masks.expected()
    torch.testing.assert_close(
        gate(x)[:, :, 0, 0], torch.stack([expected[1], torch.ones(()), expected[0]]).expand(4, 3)
    )
    noise = Noise(0)
    noise.restart(3)
    masks.drawn = masks.draw(noise, 4)
    out = gate(x)
    assert torch.equal(out[:, 0, 1, 1], masks.drawn[:, 1])
    assert torch.equal(out[:, 1], x[:, 1])
    assert len(out[:, 0].unique()) == 4
    windows = gate(torch.ones(8, 3, 2, 2))  # two of each example
    assert torch.equal(windows[::2], out)
    assert torch.equal(windows[1::2], out)
    with pytest.raises(ValueError, match="masks were drawn for 4 examples, and a layer reads 6 rows"):
        gate(torch.ones(6, 3, 2, 2))
    noise.restart(3)
    assert torch.equal(masks.draw(noise, 4), masks.drawn)  # a function of the step
    noise.restart(3, rank=1)
    assert not torch.equal(masks.draw(noise, 4), masks.drawn)
    gate.expire()
    assert masks.drawn is None


def test_a_mask_that_is_expected_to_be_tiny_is_none_and_pays_its_price() -> None:
    masks = BetaBernoulli(1, CPU, alpha=1e-4, temperature=0.1, a=-7.0)  # softplus is 1e-3
    assert masks.expected().tolist() == [0.0]
    masks.price = 1.0
    one = masks.penalty()
    masks.price = 2.0
    torch.testing.assert_close(masks.penalty(), 2 * one)


def widths_of(choices: list[list[int]], weights: list[list[float]]) -> Counts:
    widths = Counts([4, 2], (0.5, 1.0), CPU)
    widths.drawn = choices, torch.tensor(weights)
    return widths


def test_widths_are_mixed_by_interpolation_and_the_likeliest_is_cut() -> None:
    widths = widths_of([[1, 0], [0, 1]], [[0.75, 0.25], [1.0, 0.0]])
    here = [Part(0, torch.tensor([[0], [2], [4], [6]])), Part(1, torch.tensor([[3], [1]]))]
    gate = WidthGate(widths, here, -1, owner=True)
    x = torch.tensor([[10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0]])
    first = 0.75 * torch.tensor([10.0, 30.0, 50.0, 70.0]) + 0.25 * torch.tensor([10.0, 10.0, 30.0, 30.0])
    # Of the second layer all weight is on its first channel, the one at 3, spread over both.
    wanted = torch.tensor([[first[0], 40.0, first[1], 40.0, first[2], 60.0, first[3], 80.0]])
    torch.testing.assert_close(gate(x), wanted)
    gate.expire()
    assert widths.best() == [4, 2]  # of equal logits, the widest
    with torch.no_grad():
        widths.logits[:, 0] = 1.0
    assert widths.best() == [2, 1]
    torch.testing.assert_close(gate(x), torch.tensor([[10.0, 0.0, 30.0, 40.0, 0.0, 60.0, 0.0, 80.0]]))


def test_channels_that_occur_often_and_maps_are_mixed_alike() -> None:
    widths = widths_of([[1, 0], [0, 1]], [[0.5, 0.5], [1.0, 0.0]])
    maps = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    by_map = WidthGate(widths, [Part(0, torch.arange(4)[:, None])], -2, owner=True)(maps)
    flat = WidthGate(widths, [Part(0, torch.arange(12).view(4, 3))], -1, owner=True)(maps.flatten(1))
    torch.testing.assert_close(flat.view(2, 4, 3), by_map)


def test_the_probability_that_channels_stay() -> None:
    widths = Counts([4, 2], (0.5, 1.0), CPU)
    with torch.no_grad():
        widths.logits[0, 1] = 1.0
    wide = float(torch.tensor(1.0).sigmoid())
    stays = widths.stays(torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 0, 1]))
    torch.testing.assert_close(stays, torch.tensor([1.0, 1.0, wide, wide, 1.0, 0.5]))


def test_channels_are_on_by_what_enters_the_layer() -> None:
    noise = Noise(0)
    noise.restart(0)
    spm = SaliencyGate(2, torch.tensor([True, True, False]), -3, -3, 1, noise, CPU)
    conv = nn.Conv2d(2, 3, 1)
    net = nn.Sequential(conv, nn.BatchNorm2d(3)).eval()
    x = torch.stack([torch.full((2, 4, 4), v) for v in (-1.0, 1.0)])
    plain = net(x)
    attach(net, {"1": spm, "input of 0": Listener(spm)})
    torch.testing.assert_close(net(x), plain)  # all on at first
    with torch.no_grad():
        first, _, second, offset = spm.weights
        first.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        second.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]))
        offset.copy_(torch.tensor([-1.0, 1.0, 1.0]))
    on = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])  # relu(-2) = 0 and relu(2) = 2; the third has to stay
    torch.testing.assert_close(net(x), plain * on[:, :, None, None])
    assert torch.equal(spm.open, on)
    net(x).sum().backward()
    assert float(first.grad.abs().sum()) > 0
    with pytest.raises(RuntimeError, match="a gate was asked before its layer"):
        net[1](plain)
    detach(net)
