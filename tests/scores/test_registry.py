"""Scores by name, by themselves and as functions; among whom they rank; what they cost; every one on real networks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import lightning_prune.scores
from lightning_prune import PlanError, prune_channels
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.errors import CalibrationError, ChannelError
from lightning_prune.scores import Score, find_score, register, score_names
from lightning_prune.scoring import base
from lightning_prune.scoring.scope import quantiles, ranked, structures
from tests.channels.branching import EXAMPLE, residual
from tests.scores.networks import units_of

NAMES = (
    "bn_scale", "cop", "cpot", "fpgm", "hrank", "l1", "l2", "lasso", "nisp", "random", "taylor",
    "taylor_activation", "taylor_weight", "thinet", "variance",
)  # fmt: skip


def test_every_score_is_a_small_file_that_names_its_source() -> None:
    assert tuple(score_names()) == NAMES
    for path in Path(lightning_prune.scores.__file__).parent.glob("[!_]*.py"):
        assert len(path.read_text().splitlines()) <= 60, path
    for name in NAMES:
        score = find_score(name)
        assert score.needs in ("weights", "activations", "gradients", "weight gradients")
        assert len((type(score).__doc__ or "").splitlines()) > 1 or name == "fpgm", name


def test_a_score_of_ones_own_is_a_function_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_SCORES", dict(base._SCORES))

    @register("largest")
    class Largest(Score):
        def of_layer(self, x: Tensor, gradient: Tensor | None = None) -> Tensor:
            return x.abs().flatten(1).amax(1)

    def largest(units: ChannelUnits) -> Tensor:
        weights = {n: w.detach().abs().flatten(1).amax(1) for n, w in units.weights().items()}
        return units.normalize(units.aggregate(weights))

    plans = []
    for score in ("largest", Largest(), largest):
        model = residual()
        plans.append(prune_channels(model, EXAMPLE, score=score, macs=0.5).plan)
    assert plans[0] == plans[1] == plans[2]


def test_wrong_scores_are_answered() -> None:
    with pytest.raises(ValueError, match=r"score='tailor' is none of \['bn_scale', .*\]. Did you mean taylor"):
        find_score("tailor")
    with pytest.raises(TypeError, match=r"score=3: expected a name \(bn_scale, .*\), a Score or a function"):
        find_score(3)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="override of_layer"):
        prune_channels(residual(), EXAMPLE, score=Score(), macs=0.5)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"score": "l2"}, PlanError, "score needs exactly one of ratio, threshold, macs, params, channels, found none"),
    ({"score": "l2", "macs": 0.5, "keep": {}}, PlanError, "score and keep were given"),
    ({"score": "l2", "macs": 0.5, "scope": "all"}, ValueError, "scope='all' must be one of"),
    ({"score": "l2", "threshold": {"stem.0": 1.0}}, PlanError, "with score= it is one number"),
    ({"score": "taylor", "macs": 0.5}, CalibrationError, "Taylor needs gradients on calibration batches and got none"),
    ({"score": "taylor", "macs": 0.5, "batches": [EXAMPLE]}, ValueError, "and labels of NoneType"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=str)
def test_wrong_requests_are_answered(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prune_channels(residual(), EXAMPLE, **options)


@pytest.mark.parametrize("amount", [{"ratio": 0.25}, {"threshold": 0.9}, {"channels": 0.75}, {"params": 0.6}])
def test_a_score_by_name_takes_every_amount(amount: dict[str, float]) -> None:
    model = residual()
    units = units_of(model, EXAMPLE)
    score = find_score("l1").combine(units, find_score("l1").of_weights(units))
    result = prune_channels(model, EXAMPLE, score="l1", **amount)  # type: ignore[arg-type]
    gone = ~result.keep
    members = units.members()
    if "ratio" in amount:
        assert float(members[gone].sum() / members.sum()) <= 0.25
        assert float(score[gone].max()) <= float(score[~gone].min())
    elif "threshold" in amount:
        assert torch.equal(gone, score < 0.9)
    else:
        (name,) = amount
        assert 0.9 * amount[name] <= result.selection.numbers()[name] <= amount[name]


def test_quantiles() -> None:
    score = torch.tensor([3.0, 1.0, 2.0, 9.0, 9.0, torch.inf])
    pool = torch.tensor([0, 0, 0, 7, 7, 7])
    expected = [5 / 6, 1 / 6, 3 / 6, 1 / 4, 3 / 4, float("inf")]
    assert quantiles(score, pool).tolist() == pytest.approx(expected)


def test_structures_are_alike_where_the_same_kinds_of_tensors_are_tied() -> None:
    units = units_of(residual(blocks=3), EXAMPLE)
    kinds, axes = structures(units), units.graph.axes
    inner = [kinds[axes[f"blocks.{i}.0.0.weight"][0]].unique() for i in range(3)]
    assert len(torch.cat(inner).unique()) == 1
    assert not torch.isin(kinds[axes["stem.0.weight"][0]], torch.cat(inner)).any()
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=2, img_size=32)
    units = ChannelUnits.of(vit, ChannelGraph.trace(vit, torch.randn(1, 3, 32, 32), attention="heads"))
    kinds, axes = structures(units), units.graph.axes
    heads, hidden = (kinds[axes[f"blocks.0.{n}.weight"][0]] for n in ("attn.qkv", "mlp.fc1"))
    assert len(heads.unique()) == len(hidden.unique()) == 1
    assert heads[0] != hidden[0]
    assert torch.equal(kinds[axes["blocks.1.mlp.fc1.weight"][0]].unique(), hidden.unique())


def test_scopes_share_out_what_goes() -> None:
    """Of two blocks that are alike, the first has the smaller filters; the stream has the smallest."""
    model = residual()
    with torch.no_grad():
        model.blocks[0][0][0].weight.mul_(0.1)
        model.stem[0].weight.mul_(1e-3)
        for block in model.blocks:
            block[2].weight.mul_(1e-3)
    units = units_of(model, EXAMPLE)
    norms = {name: w.detach().flatten(1).norm(dim=1) for name, w in units.weights().items()}
    score, axes = units.aggregate(norms), units.graph.axes
    small, large, stream = (axes[n][0] for n in ("blocks.0.0.0.weight", "blocks.1.0.0.weight", "stem.0.weight"))

    def lowest(scope: Any) -> list[int]:
        order = ranked(units, score, scope).argsort()[: units.size // 2]
        return [int(torch.isin(ids, order).sum()) for ids in (small, large, stream)]

    assert lowest("global") == [2, 0, 8]
    assert lowest("layer") == [3, 3, 4]
    assert lowest("isomorphic") == [6, 0, 4]


def test_a_stream_keeps_its_share_when_layers_share_alike() -> None:
    model = residual()
    result = prune_channels(model, EXAMPLE, score="l2", channels=0.5, scope="layer")
    assert {kept / size for kept, size in result.selection.kept} == {0.5}


ARCHITECTURES: dict[str, tuple[dict[str, Any], int]] = {
    "resnet18": ({"channels": (16, 32, 64, 128)}, 32),
    "convnext_atto": ({"depths": (1, 1, 2, 1)}, 32),
    "vit_tiny_patch16_224": ({"depth": 2, "img_size": 32}, 32),
}
REFUSED = {
    ("convnext_atto", "bn_scale"): "ConvNeXt has none",
    ("vit_tiny_patch16_224", "bn_scale"): "VisionTransformer has none",
    ("vit_tiny_patch16_224", "hrank"): "HRank has no value for any channel of VisionTransformer",
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def traced(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Tensor, ChannelGraph]:
    options, size = ARCHITECTURES[request.param]
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=10, **options)
    for name, p in model.named_parameters():
        if name.endswith("gamma"):  # a layer scale of 1e-6 hides the whole block
            nn.init.ones_(p)
    x = torch.randn(4, 3, size, size)
    return request.param, model, x, ChannelGraph.trace(model, x[:2])


@pytest.mark.parametrize("score", NAMES)
def test_every_score_halves_every_network(traced: tuple[str, nn.Module, Tensor, ChannelGraph], score: str) -> None:
    name, dense, x, graph = traced
    model = copy.deepcopy(dense)
    options: dict[str, Any] = {"score": score, "batches": [(x, torch.tensor([1, 2, 3, 4]))], "macs": 0.5}
    if (name, score) in REFUSED:
        with pytest.raises(ChannelError, match=REFUSED[name, score]):
            prune_channels(model, x[:2], graph=graph, **options)
        return
    result = prune_channels(model, x[:2], graph=graph, **options)
    assert result.proof is not None
    assert result.proof.equal
    assert 0.49 * result.macs[0] <= result.macs[1] <= 0.5 * result.macs[0]
