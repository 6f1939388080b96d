"""Every rule alone: a small network around one operator, its expected classes, and the proof that they are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.channels import ChannelGraph, prune_channels
from lightning_prune.errors import SurgeryError
from tests.channels.models import randomise, silenced

WIDTH = 12


class Around(nn.Module):
    """conv -> norm -> the operator under test -> conv -> mean -> linear."""

    def __init__(self, operator: Callable[[nn.Module, Tensor], Tensor], after: int, **layers: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.operator = operator
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.second = nn.Conv2d(after, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.operator(self, self.norm(self.first(x)))
        return self.head(self.second(x).mean((2, 3)))


class Numbers(nn.Module):
    """Constant numbers of channels."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(numbers))


# name: (operator, channels after it, layers, classes that `first` falls into (0: all frozen))
CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, dict[str, Callable[[], nn.Module]], int]] = {
    "identity": (lambda m, x: x, 12, {}, 12),
    "relu": (lambda m, x: x.relu(), 12, {}, 12),
    "silu in place": (lambda m, x: F.silu(x, inplace=True), 12, {}, 12),
    "dropout": (lambda m, x: F.dropout(x, 0.5, m.training), 12, {}, 12),
    "prelu per channel": (lambda m, x: m.act(x), 12, {"act": lambda: nn.PReLU(12)}, 12),
    "prelu single": (lambda m, x: m.act(x), 12, {"act": nn.PReLU}, 12),
    "add itself": (lambda m, x: x + x, 12, {}, 12),
    "scalar product": (lambda m, x: 0.5 * x, 12, {}, 12),
    "new zeros of one place": (lambda m, x: x + x.new_zeros((1, 1, 8, 8)), 12, {}, 12),
    "new zeros of channels": (lambda m, x: x + x.new_zeros((1, 12, 1, 1)), 12, {}, 0),
    "uncontrolled summand": (lambda m, x: x + torch.arange(12.0).to(x).view(1, 12, 1, 1), 12, {}, 0),
    "gates of one channel": (lambda m, x: x[:, :10] * x[:, 10:11] + x[:, :10] * x[:, 11:], 10, {}, 10),
    "depthwise": (lambda m, x: m.dw(x), 12, {"dw": lambda: nn.Conv2d(12, 12, 3, padding=1, groups=12)}, 12),
    "depthwise multiplier": (lambda m, x: m.dw(x), 24, {"dw": lambda: nn.Conv2d(12, 24, 3, padding=1, groups=12)}, 12),
    "grouped": (lambda m, x: m.g(x), 9, {"g": lambda: nn.Conv2d(12, 9, 3, padding=1, groups=3)}, 4),
    "transposed": (lambda m, x: m.t(x), 5, {"t": lambda: nn.ConvTranspose2d(12, 5, 2, 2)}, 12),
    "transposed depthwise": (lambda m, x: m.t(x), 12, {"t": lambda: nn.ConvTranspose2d(12, 12, 2, 2, groups=12)}, 12),
    "transposed multiplier": (lambda m, x: m.t(x), 24, {"t": lambda: nn.ConvTranspose2d(12, 24, 2, 2, groups=12)}, 12),
    "transposed grouped": (lambda m, x: m.t(x), 9, {"t": lambda: nn.ConvTranspose2d(12, 9, 2, 2, groups=3)}, 4),
    "transposed to one each": (lambda m, x: m.t(x), 3, {"t": lambda: nn.ConvTranspose2d(12, 3, 2, 2, groups=3)}, 4),
    "max pool": (lambda m, x: F.max_pool2d(x, 2), 12, {}, 12),
    "avg pool": (lambda m, x: F.avg_pool2d(x, 2), 12, {}, 12),
    "adaptive pool": (lambda m, x: F.adaptive_avg_pool2d(x, 3), 12, {}, 12),
    "interpolate": (lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), 12, {}, 12),
    "spatial pad": (lambda m, x: F.pad(x, (1, 1, 2, 2)), 12, {}, 12),
    "reflect pad": (lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 12, {}, 12),
    "channel pad": (lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 2)), 16, {}, 12),
    "cat": (lambda m, x: torch.cat([x, x.relu()], 1), 24, {}, 12),
    "stack sum": (lambda m, x: torch.stack([x, x.relu()], 1).sum(1), 12, {}, 12),
    "chunk": (lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), 12, {}, 12),
    "chunk product": (lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], 6, {}, 6),
    "glu": (lambda m, x: F.glu(x, 1), 6, {}, 6),
    "unbind channels": (lambda m, x: torch.stack(x.unbind(1), 1), 12, {}, 0),
    "one channel picked": (lambda m, x: x * x[:, 3:4].sigmoid(), 12, {}, 11),
    "select": (lambda m, x: x * x.select(1, 3).unsqueeze(1), 12, {}, 0),
    "shuffle": (lambda m, x: x.view(x.shape[0], 3, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2), 12, {}, 4),
    "channel_shuffle": (lambda m, x: F.channel_shuffle(x, 3), 12, {}, 4),
    "pixel shuffle": (lambda m, x: F.pixel_shuffle(x, 2), 3, {}, 3),
    "pixel unshuffle": (lambda m, x: F.pixel_unshuffle(x, 2), 48, {}, 12),
    "space to depth": (
        lambda m, x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2]], 1), 24, {}, 12),
    "im2col": (lambda m, x: F.unfold(x, 3, padding=1).view(x.shape[0], -1, *x.shape[2:]), 108, {}, 12),
    "permute linear": (
        lambda m, x: m.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 7, {"fc": lambda: nn.Linear(12, 7)}, 12),
    "flip channels": (lambda m, x: x.flip(1), 12, {}, 12),
    "roll space": (lambda m, x: x.roll(1, 2), 12, {}, 12),
    "roll channels": (lambda m, x: x.roll(1, 1), 12, {}, 0),
    "repeat": (lambda m, x: x.repeat(1, 2, 1, 1), 24, {}, 12),
    "repeat_interleave": (lambda m, x: x.repeat_interleave(2, 1), 24, {}, 12),
    "expand gate": (lambda m, x: x * x.mean((2, 3), keepdim=True).expand_as(x), 12, {}, 12),
    "channel mean": (lambda m, x: x * x.mean(1, keepdim=True), 12, {}, 0),
    "channel softmax": (lambda m, x: x.softmax(1), 12, {}, 0),
    "channel max": (lambda m, x: x * x.amax(1, keepdim=True), 12, {}, 0),
    "cumsum": (lambda m, x: x.cumsum(1), 12, {}, 0),
    "layer norm": (
        lambda m, x: m.ln(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 12, {"ln": lambda: nn.LayerNorm(12)}, 0),
    "group norm": (lambda m, x: m.gn(x), 12, {"gn": lambda: nn.GroupNorm(3, 12)}, 3),
    "group norm of one group": (lambda m, x: m.gn(x), 12, {"gn": lambda: nn.GroupNorm(1, 12)}, 0),
    "group norm of single channels": (lambda m, x: m.gn(x), 12, {"gn": lambda: nn.GroupNorm(12, 12)}, 12),
    "group norm by itself": (lambda m, x: F.group_norm(x, 4), 12, {}, 4),
    "two group norms": (lambda m, x: m.a(m.b(x)), 12, {
        "a": lambda: nn.GroupNorm(6, 12), "b": lambda: nn.GroupNorm(4, 12)}, 2),
    "instance norm": (lambda m, x: m.inorm(x), 12, {"inorm": lambda: nn.InstanceNorm2d(12, affine=True)}, 12),
    "index by list": (lambda m, x: x[:, [2, 0, 1, *range(3, 12), -1, -1]], 14, {}, 12),
    "index one": (lambda m, x: x[:, [2]], 1, {}, 0),
    "index_select": (lambda m, x: x.index_select(1, m.i.weight), 13, {"i": lambda: Numbers(7, *range(12))}, 12),
    "index twice by one tensor": (
        lambda m, x: x[:, m.i.weight][:, m.i.weight], 4, {"i": lambda: Numbers(3, 2, 1, 0)}, 0),
    "index by data": (lambda m, x: x[:, x.mean((0, 2, 3)).argsort()], 12, {}, 0),
    "eca": (
        lambda m, x: x * m.c(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid(), 12,
        {"c": lambda: nn.Conv1d(1, 1, 3, padding=1)}, 0),
    "squeeze and excite": (
        lambda m, x: x * m.up(m.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid(), 12,
        {"down": lambda: nn.Conv2d(12, 4, 1), "up": lambda: nn.Conv2d(4, 12, 1)}, 12),
    "standardised kernel": (lambda m, x: F.conv2d(x, _standardised(m.c.weight)), 9, {
        "c": lambda: nn.Conv2d(12, 9, 1)}, 0),
    "einsum": (lambda m, x: torch.einsum("bchw,dc->bdhw", x, m.w.weight), 5, {"w": lambda: nn.Linear(12, 5)}, 12),
    "channel attention": (
        lambda m, x: (x.flatten(2).transpose(1, 2) @ x.flatten(2)).unsqueeze(1).expand(-1, 3, -1, -1), 3, {}, 12),
    "unknown operator": (lambda m, x: torch.cdist(x.flatten(2), x.flatten(2)).unsqueeze(1), 1, {}, 0),
    "autocast region": (lambda m, x: _autocast(x), 12, {}, 12),
}  # fmt: skip


def _standardised(weight: Tensor) -> Tensor:
    """Each filter to mean 0 and variance 1 over its inputs, by the operator that timm does it with (NFNet, BiT)."""
    return F.batch_norm(weight.reshape(1, len(weight), -1), None, None, training=True).view_as(weight)


def _autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return x * 2.0


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    operator, after, layers, expected = CASES[name]
    torch.manual_seed(0)
    model = randomise(Around(operator, after, **{k: make() for k, make in layers.items()})).double()
    example = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = ChannelGraph.trace(model, example)
    ids = graph.axes["norm.weight"][0]
    assert len(ids[ids >= 0].unique()) == expected, graph
    if expected == 0:
        assert bool((ids < 0).all())
        assert all(graph.frozen_reasons[-1 - i] for i in ids.tolist())
        return
    # Every class in turn is removable exactly, and eagerly or by the graph the result is what masking gives.
    for removed in ids[ids >= 0].unique()[:: max(1, expected // 3)]:
        dense = randomise(Around(operator, after, **{k: make() for k, make in layers.items()})).double()
        dense.load_state_dict(model.state_dict())
        small = randomise(Around(operator, after, **{k: make() for k, make in layers.items()})).double()
        small.load_state_dict(model.state_dict())
        result = prune_channels(small, example, keep={"norm": (ids != removed).nonzero().flatten()})
        assert small.norm.num_features < WIDTH
        x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
        reference = silenced(dense, result.plan)
        if name != "prelu single":  # everything here maps zero to zero
            torch.testing.assert_close(small(x), reference(x), rtol=1e-9, atol=1e-9)


def test_whole_groups_can_go() -> None:
    layers = {"g": nn.Conv2d(12, 9, 3, padding=1, groups=3)}
    model = randomise(Around(lambda m, x: m.g(x), 9, **layers))
    graph = ChannelGraph.trace(model, torch.randn(2, 3, 8, 8), groups="whole")
    ids = graph.axes["norm.weight"][0]
    assert ids.view(3, 4).unique(dim=1).shape == (3, 1)
    prune_channels(model, torch.randn(2, 3, 8, 8), keep={"norm": range(4, 12)}, groups="whole")
    assert (model.g.groups, model.g.in_channels, model.g.out_channels) == (2, 8, 6)


def test_whole_groups_of_a_transposed_convolution_can_go() -> None:
    model = randomise(Around(lambda m, x: m.t(x), 9, t=nn.ConvTranspose2d(12, 9, 2, 2, groups=3)))
    prune_channels(model, torch.randn(2, 3, 8, 8), keep={"norm": range(4, 12)}, groups="whole")
    assert (model.t.groups, model.t.in_channels, model.t.out_channels) == (2, 8, 6)


def test_whole_groups_of_a_group_norm_can_go() -> None:
    model = randomise(Around(lambda m, x: m.gn(x), 12, gn=nn.GroupNorm(3, 12)))
    prune_channels(model, torch.randn(2, 3, 8, 8), keep={"norm": range(4, 12)})
    assert (model.gn.num_groups, model.gn.num_channels, model.first.out_channels) == (2, 8, 8)
    fixed = randomise(
        Around(lambda m, x: F.group_norm(x, 4), 12)
    )  # the 4 stands in the code: only a graph can change it
    result = prune_channels(fixed, torch.randn(2, 3, 8, 8), keep={"norm": range(3, 12)})
    assert result.plan.form == "graph"


class Viewed(nn.Module):
    """A linear layer whose outputs become a map, as in a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.linear = 6, nn.Linear(7, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).view(-1, self.width, 4, 4).relu()


@pytest.mark.parametrize("sizes", [None, (6, 4, 4), (-1, 4, 4)])
def test_channels_of_a_map_that_a_linear_layer_makes_go(sizes: tuple[int, ...] | None) -> None:
    """Of what the reshape splits, the dim of the channels stays free where a layer on maps reads it."""
    first = Viewed() if sizes is None else nn.Sequential(nn.Linear(7, 96), nn.Unflatten(1, sizes), nn.ReLU())
    model = randomise(nn.Sequential(first, nn.ConvTranspose2d(6, 3, 4, 2, 1)))
    name = next(n for n, p in model.named_parameters() if p.shape == (96, 7))
    result = prune_channels(model, torch.randn(2, 7), keep={name: range(64)}, form="eager")
    assert result.proof is not None
    assert model[1].weight.shape[0] == 4
    assert dict(model.named_parameters())[name].shape == (64, 7)


class Mixture(nn.Module):
    """A convolution whose weight is mixed from experts, for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.weight = nn.Linear(12, 2), nn.Parameter(torch.randn(2, 12 * 12))

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.route(x.mean((2, 3))).softmax(1) @ self.weight).view(-1, 12, 1, 1)
        return F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, groups=len(x)).view_as(x)


@pytest.mark.parametrize(
    ("operator", "layer", "reason"),
    [
        (lambda m, x: m.layer(x.movedim(1, 3)).movedim(3, 1), nn.LayerNorm(12),
         "layer_norm at layer (LayerNorm): its statistics depend on the number of channels"),
        (lambda m, x: m.layer(x), nn.GroupNorm(1, 12),
         "group_norm at layer (GroupNorm): its statistics depend on the number of channels"),
        (lambda m, x: m.layer(x), Mixture(),
         "conv2d at layer (Mixture): the weight is computed while running (as in CondConv) or constant: no parameter "
         "has its channels"),
    ],
    ids=["layer norm", "group norm of one group", "mixture of weights"],
)  # fmt: skip
def test_reasons_name_the_operator_the_place_and_the_cause(operator: Any, layer: nn.Module, reason: str) -> None:
    graph = ChannelGraph.trace(randomise(Around(operator, 12, layer=layer)), torch.randn(2, 3, 8, 8))
    ids = graph.axes["norm.weight"][0]
    assert bool((ids < 0).all())
    assert {reason} <= {r for i in ids.tolist() for r in graph.frozen_reasons[-1 - i]}, graph.frozen_reasons


def test_eca_is_an_approximation_that_must_be_asked_for() -> None:
    operator, after, layers, _ = CASES["eca"]
    model = randomise(Around(operator, after, **{k: make() for k, make in layers.items()}))
    example = torch.randn(2, 3, 8, 8)
    result = prune_channels(model, example, keep={"norm": [0, 1, 2, 5, 6, 8, 10, 11]}, allow_inexact=("eca",))
    assert any("eca" in note for note in result.notes)
    assert result.proof is not None
    assert 0 < result.proof.difference < 1


def test_a_wrong_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rule that claims too much, the proof fails: the surgery is refused and names the layer."""
    from lightning_prune.channels.rules.registry import RULES, elementwise

    monkeypatch.setitem(RULES, "roll", elementwise)
    operator, after, _, _ = CASES["roll channels"]
    model = randomise(Around(operator, after))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(SurgeryError, match="second"):
        prune_channels(model, torch.randn(2, 3, 8, 8), keep={"norm": range(9)})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
