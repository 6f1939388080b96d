"""Streams under norms, and dims of heads, removed exactly: what is left divides by what it divided by."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import load_pruned, prune_channels, save_pruned
from lightning_prune.channels import ChannelGraph, PlanError, PruningPlan
from lightning_prune.plan.record import plan_of
from tests.channels.models import silenced

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Stream(nn.Module):
    """Blocks around a stream of tokens, under a norm of any kind; attention in its default scale."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm, width: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.place = nn.Parameter(torch.zeros(1, 4, width))
        self.first, self.second, self.last = norm(width), norm(width), norm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 20), nn.Linear(20, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.place
        b, n, _ = x.shape
        q, k, v = self.qkv(self.first(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.second(x))))
        return self.head(self.last(x).mean(1))


class Maps(nn.Module):
    """A residual stream of maps under GroupNorm."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 5)
        self.norm, self.conv = nn.GroupNorm(groups, 12), nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.GroupNorm(groups, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(F.silu(self.norm(x)))
        return self.head(F.silu(self.last(x)).mean((2, 3)))


class Without(nn.Module):
    """A norm without scale factors, before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 5)
        self.norm = nn.LayerNorm(12, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


def _timm(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **kwargs)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": Stream,
    "rms norm": lambda: Stream(nn.RMSNorm),
    "one group": lambda: Maps(1),
    "three groups": lambda: Maps(3),
    "without scale factors": Without,
    "vit": _timm("vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2),
    "convnext": _timm("convnext_atto", patch_size=1, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    "swin": _timm(
        "swin_tiny_patch4_window7_224", img_size=8, patch_size=1, window_size=2, embed_dim=8, depths=(1, 2),
        num_heads=(1, 2),
    ),
}  # fmt: skip


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """A network in float64 whose vectors, β of the norms among them, are random."""
    torch.manual_seed(0)
    model = make().double().eval()
    for p in model.parameters():
        if p.ndim < 2:
            p.data += 0.2 * torch.randn_like(p)
    return model


def pruned(model: nn.Module, **options: Any) -> Any:
    options = {"score": "l1", "macs": 0.5, "norms": "exact", **options}
    return prune_channels(model, EXAMPLE.double(), **options)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_computes_what_the_masked_network_computes(name: str, tmp_path: Path) -> None:
    dense = made(MODELS[name])
    small = copy.deepcopy(dense)
    plan = pruned(small).plan
    assert plan.denominators
    x = EXAMPLE.double()
    expected = silenced(copy.deepcopy(dense), plan)(x)
    assert (dense(x) - expected).abs().max() > 1e-3
    torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-12)
    # in copies, from its plan as JSON, and back
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        torch.testing.assert_close(copied(x), small(x), rtol=0, atol=0)
    fresh = PruningPlan.from_json(plan.to_json()).apply(copy.deepcopy(dense))
    torch.testing.assert_close(fresh(x), small(x), rtol=0, atol=0)
    # every parameter trains
    before = {n: p.detach().clone() for n, p in small.named_parameters()}
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small.train()(x).square().sum().backward()
    optimizer.step()
    still = [n for n, p in small.named_parameters() if p.numel() > 1 and torch.equal(p, before[n])]
    assert all("relative_position" in n for n in still), still  # of windows of one token
    trained = small.eval()(x)
    undone = plan_of(small).undo(small)
    torch.testing.assert_close(undone(x), trained, rtol=0, atol=1e-12)
    assert all(type(m) is type(o) for m, o in zip(undone.modules(), dense.modules(), strict=True))


def test_a_rewritten_graph_has_them_written_into_it() -> None:
    dense = made(Stream)
    small = copy.deepcopy(dense)
    plan = pruned(small, form="graph").plan
    assert plan.form == "graph"
    expected = silenced(dense, plan)(EXAMPLE.double())
    torch.testing.assert_close(small(EXAMPLE.double()), expected, rtol=0, atol=1e-12)


def test_a_stream_can_be_cut_twice() -> None:
    dense = made(Stream)
    small = copy.deepcopy(dense)
    first = pruned(small, macs=0.7).plan
    pruned(small, macs=0.7)
    both = plan_of(small)
    assert {p: both.denominators[p] for p in first.denominators} == first.denominators
    x = EXAMPLE.double()
    torch.testing.assert_close(small(x), silenced(copy.deepcopy(dense), both)(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(both.undo(copy.deepcopy(small))(x), small(x), rtol=0, atol=1e-12)


def test_a_file_brings_it_back(tmp_path: Path) -> None:
    small = made(MODELS["vit"]).float()
    prune_channels(small, EXAMPLE, score="l1", macs=0.5, norms="exact")
    save_pruned(small, tmp_path / "small.prune")
    loaded = load_pruned(tmp_path / "small.prune").eval()
    torch.testing.assert_close(loaded(EXAMPLE), small(EXAMPLE), rtol=0, atol=0)


def test_onnx_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from lightning_prune.export.onnx_file import export_onnx

    small = made(Stream).float()
    prune_channels(small, EXAMPLE, score="l1", macs=0.5, norms="exact")
    export_onnx(small, EXAMPLE, tmp_path / "small.onnx")  # raises where it does not


def test_compiled_code_is_one_graph() -> None:
    small = made(Stream)
    pruned(small)
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(EXAMPLE.double()), small(EXAMPLE.double()))


def test_by_default_the_stream_stays() -> None:
    graph = ChannelGraph.trace(made(Stream), EXAMPLE.double())
    assert bool((graph.axes["stem.weight"][0] < 0).all())
    assert any("default scale" in reason for reasons in graph.frozen_reasons for reason in reasons)


class Gated(nn.Module):
    """What comes to the norm is not zero without its channels."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.stem, self.norm, self.head = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12), nn.Linear(12, 5)
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        x = (self.mix(x) if self.tokens else torch.sigmoid(x)).transpose(1, 2)
        return self.head(self.norm(x).mean(1))


@pytest.mark.parametrize("tokens", [False, True], ids=["sigmoid", "a bias over tokens"])
def test_what_is_not_zero_without_its_channels_stays_and_says_why(tokens: bool) -> None:
    graph = ChannelGraph.trace(made(lambda: Gated(tokens)), EXAMPLE.double(), norms="exact")
    ids = graph.axes["stem.weight"][0]
    assert bool((ids < 0).all())
    assert any("not zero" in reason for reason in graph.frozen_reasons[-1 - int(ids[0])])


def _changed(plan: PruningPlan, **fields: Any) -> str:
    return json.dumps({**json.loads(plan.to_json()), **fields})


def test_plans_that_would_compute_something_else_are_refused() -> None:
    dense = made(Stream)
    plan = pruned(copy.deepcopy(dense)).plan
    assert json.loads(plan.to_json())["version"] == 2  # which a reader that knows none of this refuses
    counts = plan.denominators
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"denominators": {}}, "does not say what its statistics are divided by"),
        ({"denominators": {**counts, "nowhere": 3}}, "does not have"),
        ({"denominators": {**counts, "first": 2}}, "expected at least those"),
        ({"denominators": {**counts, "first": 1 << 60}}, "expected at least those"),
        ({"denominators": {**counts, "first": 0}}, "expected a positive count"),
        ({"version": 1}, "version 1"),
        ({"version": 3}, "newer version"),
    ]
    for fields, message in wrong:
        with pytest.raises(PlanError, match=message):
            PruningPlan.from_json(_changed(plan, **fields)).apply(copy.deepcopy(dense))
    kept = prune_channels(copy.deepcopy(dense), EXAMPLE.double(), score="l1", macs=0.9, attention="heads").plan
    assert json.loads(kept.to_json())["version"] == 1
    assert not kept.denominators


def test_below_and_above_keep_them() -> None:
    plan = pruned(made(Stream)).plan
    assert plan.above("net").below("net") == plan
    assert plan.above("net").denominators == {f"net.{p}".removesuffix("."): n for p, n in plan.denominators.items()}
