"""`prune_channels` on models that it was not tuned to: exactness, requests and limits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.channels import (
    ChannelCost,
    ChannelGraph,
    PlanError,
    prune_channels,
)
from tests.channels.models import (
    Attention,
    Branches,
    Chain,
    OptionA,
    Tied,
    random_scores,
    randomise,
    silenced,
    unchanged,
)

EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
MODELS: dict[str, Callable[[], nn.Module]] = {
    "branches": Branches,
    "chain": Chain,
    "chain without norm": lambda: Chain(norm=False),
    "attention": Attention,
    "fused attention": lambda: Attention(fused=True),
    "option A shortcut": OptionA,
    "tied weights": Tied,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_masked_equals_sliced_in_float64(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    dense = randomise(MODELS[name](), seed).double()
    small = copy.deepcopy(dense)
    graph = ChannelGraph.trace(small, EXAMPLE.double())
    generator = torch.Generator().manual_seed(seed)
    tensors = [n for n, dims in graph.axes.items() if 0 in dims and bool((dims[0] >= 0).any())]
    scores = {n: torch.rand(graph.shapes[n][0], generator=generator) for n in tensors}
    result = prune_channels(small, EXAMPLE.double(), scores=scores, ratio=0.4)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())
    x = torch.randn(3, 3, 12, 12, generator=generator, dtype=torch.float64)
    untouched = dense(x)
    reference = silenced(dense, result.plan)(x)
    torch.testing.assert_close(small(x), reference, rtol=1e-10, atol=1e-10)
    assert (untouched - reference).abs().max() > 1e-3
    assert result.proof is not None
    assert result.proof.effect > 1e-3


@pytest.mark.parametrize(
    "name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small", "googlenet", "densenet121", "squeezenet1_0"]
)
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    extra = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    dense = randomise(torchvision.models.get_model(name, weights=None, **extra))
    small = copy.deepcopy(dense)
    x = torch.randn(2, 3, 96, 96)
    scores = random_scores(small) or {
        n: torch.rand(m.out_channels) for n, m in small.named_modules() if isinstance(m, nn.Conv2d)
    }
    result = prune_channels(small, x, scores=scores, ratio=0.3)
    assert result.plan.form == "eager"
    reference = silenced(copy.deepcopy(dense), result.plan).double()(x.double())
    torch.testing.assert_close(small.double()(x.double()), reference, rtol=1e-8, atol=1e-8)


def test_attention_heads_can_go_whole() -> None:
    model = randomise(Attention(fused=True, scale=None))
    graph = ChannelGraph.trace(model, EXAMPLE, attention="heads")
    ids = graph.axes["qkv.weight"][0].view(3, 4, 4)
    assert len(ids.unique()) == 4
    assert bool((ids == ids[:1, :, :1]).all())
    gone = torch.ones(3, 4, 4, dtype=torch.bool)
    gone[:, 2] = False
    prune_channels(model, EXAMPLE, keep={"qkv": gone.flatten()}, attention="heads")
    assert (model.heads, model.qkv.out_features, model.project.in_features) == (3, 36, 12)
    model.train()(EXAMPLE).sum().backward()


def test_the_default_scale_freezes_queries_and_keys() -> None:
    graph = ChannelGraph.trace(randomise(Attention(fused=True, scale=None)), EXAMPLE)
    reasons = {r for f in graph.frozen if f.tensor == "qkv.weight" and f.dim == 0 for r in f.reasons}
    assert any("default scale" in reason for reason in reasons)
    free = ChannelGraph.trace(randomise(Attention(fused=True)), EXAMPLE)
    assert bool((free.axes["qkv.weight"][0] >= 0).all())


def test_groups_are_plain_data_and_cover_every_member() -> None:
    graph = ChannelGraph.trace(randomise(Chain()), EXAMPLE)
    first = graph.groups[int(graph.axes["features.1.weight"][0][0])]
    assert {(m.tensor, m.dim) for m in first} == {
        ("features.0.weight", 0), ("features.0.bias", 0), ("features.1.weight", 0), ("features.1.bias", 0),
        ("features.1.running_mean", 0), ("features.1.running_var", 0), ("features.3.weight", 1),
    }  # fmt: skip
    assert all(m.indices == (0,) for m in first)
    last = graph.groups[int(graph.axes["features.7.weight"][0][1])]
    assert ("head.weight", 1, (4, 5, 6, 7)) in [tuple(m) for m in last]
    assert len(graph.groups) == graph.size == 8 + 12 + 6
    assert {f.tensor for f in graph.frozen if "the network's output" in f.reasons} == {"head.weight", "head.bias"}
    assert "26 removable channel groups" in str(graph)


def test_example_input_as_tuple_and_as_keywords() -> None:
    for example in ((EXAMPLE,), {"x": EXAMPLE}):
        model = randomise(Chain())
        prune_channels(model, example, keep={"features.1": range(4)})
        assert model.features[0].out_channels == 4


def test_tracing_leaves_modes_and_state_alone() -> None:
    model = randomise(Branches()).train()
    model.left.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ChannelGraph.trace(model, EXAMPLE)
    assert model.training
    assert not model.left.training
    assert model.right.training
    assert unchanged(model, before)


def test_ratio_floor_divisor_and_threshold() -> None:
    for divisor, floor in ((1, 3), (4, 1), (4, 0.5)):
        model = randomise(Chain((16, 32, 24)))
        prune_channels(model, EXAMPLE, scores=random_scores(model), ratio=0.8, divisor=divisor, min_channels=floor)
        for layer, width in zip((0, 3, 6), (16, 32, 24), strict=True):
            left = model.features[layer].out_channels
            assert left % divisor == 0 or left == width
            assert left >= (floor if isinstance(floor, int) else floor * width)
    model = randomise(Chain((16, 32, 24)))
    scores = random_scores(model)
    prune_channels(model, EXAMPLE, scores=scores, threshold={"features.1": 0.5, "features.4": 0.2, "features.7": 0.0})
    assert model.features[0].out_channels == int((scores["features.1"] >= 0.5).sum())
    assert model.features[3].out_channels == int((scores["features.4"] >= 0.2).sum())
    assert model.features[6].out_channels == 24


def test_the_lowest_scores_go_first() -> None:
    model = randomise(Chain((8, 8, 8)))
    scores = {f"features.{i}": torch.arange(8.0) + offset for i, offset in ((1, 0), (4, 4), (7, 100))}
    result = prune_channels(model, EXAMPLE, scores=scores, ratio=8 / 24)
    assert result.plan.cuts["features.1.weight"].kept[0] == (6, 7) or model.features[0].out_channels < 4
    assert result.plan.cuts["features.1.weight"].kept[0] == tuple(range(8 - model.features[0].out_channels, 8))
    assert model.features[6].out_channels == 8


def test_macs_budget_and_cost_agree_with_the_flop_counter() -> None:
    model = randomise(Branches(16))
    graph = ChannelGraph.trace(model, EXAMPLE)
    cost = ChannelCost.of(graph)

    def measured() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(EXAMPLE[:1])
        return counter.get_total_flops() // 2

    dense = measured()
    assert cost.macs() == dense
    assert cost.params() == sum(p.numel() for p in model.parameters())
    result = prune_channels(model, EXAMPLE, scores=random_scores(model), macs=0.5)
    assert cost.macs(result.keep) == measured()
    assert cost.params(result.keep) == sum(p.numel() for p in model.parameters())
    assert 0.3 * dense < measured() <= 0.5 * dense


def test_every_form_gives_the_same_output() -> None:
    results = []
    for form in ("eager", "graph"):
        torch.manual_seed(0)
        model = randomise(Branches())
        result = prune_channels(model, EXAMPLE, scores=random_scores(model), ratio=0.3, form=form)
        assert result.plan.form == form
        results.append((model(EXAMPLE), list(model.state_dict())))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_graph_form_trains_copies_and_is_rebuilt_from_its_plan() -> None:
    torch.manual_seed(0)
    dense = randomise(Branches())
    small = copy.deepcopy(dense)
    plan = prune_channels(small, EXAMPLE, scores=random_scores(small), ratio=0.3, form="graph").plan
    assert isinstance(small, Branches)
    again = type(plan).from_json(plan.to_json()).apply(copy.deepcopy(dense))
    torch.testing.assert_close(again(EXAMPLE), small(EXAMPLE), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(small)(EXAMPLE), small(EXAMPLE), rtol=0, atol=0)
    x = torch.randn(5, 3, 12, 12)
    small.train()
    mean = small.left[1].running_mean.clone()
    start = {n: p.detach().clone() for n, p in small.named_parameters()}
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(mean, small.left[1].running_mean)
    assert all(not torch.equal(start[n], p) for n, p in small.named_parameters())
    small.eval()
    torch.testing.assert_close(small(x[:1]), small(x)[:1], rtol=1e-4, atol=1e-5)


def test_channels_behind_a_closed_relu_can_go() -> None:
    """Training may shut a channel: masking it changes nothing then, and the check must not take that for a failure."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        model[1].bias[:3] = -100.0
    x = torch.randn(2, 3, 8, 8)
    before = model(x)
    result = prune_channels(model, x, keep={"1": range(3, 8)})
    assert result.proof is not None
    assert result.proof.equal
    assert result.proof.effect > 1e-3
    torch.testing.assert_close(model(x), before)


def test_a_model_with_a_norm_of_one_channel_is_printed_and_pruned() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
    )
    x = torch.randn(2, 3, 8, 8)
    assert "BatchNorm channels" in str(ChannelGraph.trace(model, x))
    with pytest.raises(PlanError, match="has no channel that may go"):
        prune_channels(model, x, keep={"1": [0]})
    result = prune_channels(model, x, keep={"4": range(4)})
    assert result.proof is not None
    assert result.proof.equal


class Scaled(nn.Module):
    """Its own -1 is an axis; that of the view is whatever is left."""

    def __init__(self) -> None:
        super().__init__()
        self.axis = -1
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 2, 1)
        self.scale, self.shift = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(6))
        self.between = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.scale.view(1, -1, 1, 1)
        return self.last(self.between(x) + self.shift.view(1, -1, 1, 1)).softmax(self.axis)


def test_an_attribute_of_minus_one_is_no_width() -> None:
    model = Scaled()
    done = prune_channels(model, EXAMPLE, keep={"first": range(4)}, form="eager")
    assert (model.axis, model.first.out_channels, model.between.out_channels, done.restored) == (-1, 4, 6, 0)
