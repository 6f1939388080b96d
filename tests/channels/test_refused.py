"""What `prune_channels` refuses: the model stays as it is, and the message names the value."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_prune.channels import (
    ChannelError,
    ChannelGraph,
    PlanError,
    SurgeryError,
    TargetError,
    TraceError,
    prune_channels,
)
from lightning_prune.channels.verify import find_form
from tests.channels.models import Branches, Chain, random_scores, randomise, unchanged

EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_dense_model_is_untouched_when_nothing_can_express_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(Branches())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = dict(vars(model))
    monkeypatch.setattr(find_form, "check_plan", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(SurgeryError, match="unchanged"):
        prune_channels(model, EXAMPLE, scores=random_scores(model), ratio=0.3)
    assert unchanged(model, before)
    assert vars(model).keys() == attributes.keys()
    assert model.half == 6


class Sorting(nn.Module):
    """Control flow over data: cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown name": ({"keep": {"nowhere": [0]}}, PlanError, "nowhere"),
    "index out of range": ({"keep": {"features.1": [0, 8]}}, PlanError, "indices from 0 to 7"),
    "negative index": ({"keep": {"features.1": [-1]}}, PlanError, "indices from 0 to 7"),
    "mask of wrong length": ({"keep": {"features.1": torch.ones(7, dtype=torch.bool)}}, PlanError, r"expected \(8,\)"),
    "empty layer": ({"keep": {"features.1": []}}, PlanError, "empty"),
    "nothing to remove": ({"keep": {"features.1": range(8)}}, PlanError, "nothing would be removed"),
    "nothing dead": ({}, PlanError, "nothing would be removed"),
    "frozen": ({"keep": {"head": [0, 1]}}, PlanError, "nothing would be removed"),
    "scores of wrong shape": ({"scores": {"features.1": torch.ones(7)}, "ratio": 0.3}, PlanError, r"expected \(8,\)"),
    "scores with nan": ({"scores": {"features.1": torch.full((8,), torch.nan)}, "ratio": 0.3}, PlanError, "NaN"),
    "scores without amount": ({"scores": {"features.1": torch.ones(8)}}, PlanError, "exactly one of"),
    "ratio without scores": ({"ratio": 0.3}, PlanError, "needs scores"),
    "ratio out of range": ({"scores": {"features.1": torch.rand(8)}, "ratio": 1.5}, PlanError, "between 0 and 1"),
    "macs out of reach": ({"scores": {"features.1": torch.rand(8)}, "macs": 0.01}, PlanError, "even with every"),
    "bad divisor": ({"keep": {"features.1": range(4)}, "divisor": 0}, PlanError, "divisor=0"),
    "bad floor": ({"keep": {"features.1": range(4)}, "min_channels": 1.5}, PlanError, "min_channels=1.5"),
    "bad form": ({"keep": {"features.1": range(4)}, "form": "onnx"}, PlanError, "form='onnx'"),
    "bad groups": ({"keep": {"features.1": range(4)}, "groups": "all"}, ChannelError, "groups='all'"),
    "bad attention": ({"keep": {"features.1": range(4)}, "attention": "x"}, ChannelError, "attention='x'"),
    "bad approximation": ({"keep": {"features.1": range(4)}, "allow_inexact": ["ln"]}, ChannelError, "ln"),
    "bad constants": ({"keep": {"features.1": range(4)}, "constants": "x"}, PlanError, "constants='x'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(name: str) -> None:
    options, error, message = BAD[name]
    model = randomise(Chain())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=message):
        prune_channels(model, EXAMPLE, **options)
    assert unchanged(model, before)


def test_models_and_inputs_that_cannot_be_traced() -> None:
    with pytest.raises(TraceError, match=r"Sorting.*\(2, 3\)"):
        ChannelGraph.trace(Sorting(), torch.randn(2, 3))
    model = randomise(Chain()).train()
    with pytest.raises(TraceError, match=r"Chain.*\(2, 4, 12, 12\)"):
        ChannelGraph.trace(model, torch.randn(2, 4, 12, 12))
    assert model.training


PARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm, "spectral_norm": parametrizations.spectral_norm,
    "weight_norm as a hook": nn.utils.weight_norm, "spectral_norm as a hook": nn.utils.spectral_norm,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_parametrized_weights_are_named_with_what_to_do(name: str) -> None:
    model = randomise(Chain())
    for i in (0, 3, 6):
        PARAMETRIZATIONS[name](model.features[i])
    told = "the weight is parametrized: prune before that is added, or take it off first"
    with pytest.raises(PlanError, match=f"26 of 26 BatchNorm channels are frozen, mostly as .*{told}"):
        prune_channels(model, EXAMPLE, scores=random_scores(model), ratio=0.4)
    with pytest.raises(TargetError, match=f"Layers that stay whole: .*{told}"):
        prune_channels(model, EXAMPLE, scores=random_scores(model), macs=0.5)


def test_layers_without_a_score_are_named_where_the_target_cannot_be_met() -> None:
    model = randomise(Chain())
    scores = {"features.1": torch.rand(8)}
    with pytest.raises(TargetError, match=r"Layers whose channels have no score, 2: features\.3, features\.6\."):
        prune_channels(model, EXAMPLE, scores=scores, macs=0.2)


def test_one_parametrized_layer_holds_no_others() -> None:
    model = randomise(Chain((8, 12, 6, 10)))
    parametrizations.weight_norm(model.features[0])
    prune_channels(model, EXAMPLE, scores=random_scores(model), ratio=0.6)
    assert [model.features[i].weight.shape[0] < n for i, n in ((0, 8), (3, 12), (6, 6))] == [False, True, True]


def test_a_stream_under_a_norm_is_named_with_what_frees_it() -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)), torch.randn(2, 6)
    told = "11 of 11 output channels of weights are frozen, mostly as layer_norm .*norms='exact' may remove those too"
    with pytest.raises(PlanError, match=told):
        prune_channels(model, x, score="l1", ratio=0.5)
    prune_channels(model, x, score="l1", ratio=0.5, norms="exact")
    assert model[0].weight.shape == (4, 6)


def test_rotary_heads_are_named_with_what_frees_them() -> None:
    model = timm.create_model("eva02_tiny_patch14_224", img_size=28, depth=1, embed_dim=48, num_heads=3, scale_mlp=True)
    x = torch.randn(2, 3, 28, 28)
    with pytest.raises(PlanError, match=r"norms='exact' and attention='heads' may remove those too"):
        prune_channels(model, x, score="l1", ratio=0.5)
    prune_channels(model, x, score="l1", ratio=0.5, attention="heads")
    assert model.blocks[0].attn.proj.in_features == 32


def test_a_network_prepared_for_quantization_is_named() -> None:
    model = randomise(Chain())
    for i, (inputs, outputs) in {0: (3, 8), 3: (8, 12), 6: (12, 6)}.items():
        model.features[i] = Quantized(inputs, outputs, 3, padding=1)
    with pytest.raises(PlanError, match="prepared for quantization: prune before that"):
        prune_channels(model, EXAMPLE, scores=random_scores(model), ratio=0.4)


class Quantized(nn.Conv2d):
    """A convolution as quantization-aware training prepares it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.fake_quantize_per_tensor_affine(self.weight, 0.1, 0, -128, 127)
        return self._conv_forward(x, weight, self.bias)
