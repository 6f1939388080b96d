"""The channel groups of networks with and without BatchNorm, as units of selection."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_prune.channels import ChannelError, ChannelGraph, PlanError
from lightning_prune.channels.remove import remove_channels
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import UNTRAINED, ChannelUnits
from tests.channels.branching import EXAMPLE, residual
from tests.channels.models import Chain, randomise


def units_of(model: nn.Module, example: Tensor = EXAMPLE, attention: str = "dims", **options: object) -> ChannelUnits:
    return ChannelUnits.of(model, ChannelGraph.trace(model, example, attention=attention), **options)


def filter_norms(units: ChannelUnits) -> Tensor:
    return units.aggregate({name: p.detach().flatten(1).norm(dim=1) for name, p in units.weights().items()})


@pytest.mark.parametrize(
    ("name", "attention", "layers"),
    [
        ("test_convnext", "dims", ("stages.0.blocks.0.mlp.fc1",)),
        ("test_vit", "heads", ("blocks.0.attn.qkv", "blocks.1.mlp.fc1")),
        ("test_resnet", "dims", ("conv1.0", "layer2.0.conv1")),
    ],
)
@pytest.mark.parametrize("resource", ["macs", "params", "channels"])
def test_any_network_meets_a_budget(name: str, attention: str, layers: tuple[str, ...], resource: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    nn.init.normal_(model.get_parameter(next(n for n, _ in model.named_parameters() if n.endswith("bias"))))
    for n, p in model.named_parameters():
        if n.endswith("gamma"):  # a layer scale of 1e-6 hides the whole block
            nn.init.ones_(p)
    example = torch.randn(2, *model.default_cfg["input_size"])
    units = units_of(model, example, attention)
    assert {(layer,) for layer in layers} <= set(units.layers)
    scores = units.normalize(filter_norms(units))
    for values in units.by_layer(scores):
        torch.testing.assert_close(values.mean(), torch.tensor(1.0, dtype=torch.float64))
    options = {"delta": 0.0, "min_channels": 1, "divisor": 1}
    selector = Selector(units, rule=None, budget=(resource, 0.75), **options)  # type: ignore[arg-type]
    selection = selector.select(scores)
    assert 0.74 <= selection.numbers()[resource] <= 0.75
    assert selection.missed() == ""
    before = sum(p.numel() for p in model.parameters())
    result = remove_channels(model, example, selector, selection)
    assert torch.equal(result.keep, selection.keep)
    assert result.params[0] == before
    assert result.params[1] == sum(p.numel() for p in model.parameters())
    assert f" {100 * result.macs[1] / result.macs[0]:.1f} %" in str(result)


def test_heads_are_units() -> None:
    model = timm.create_model("test_vit", num_classes=10).eval()
    units = units_of(model, torch.randn(1, 3, 160, 160), "heads")
    qkv = units.layers.index(("blocks.0.attn.qkv",))
    assert int((units.layer == qkv).sum()) == model.blocks[0].attn.num_heads
    assert set(units.sites()) >= {"blocks.0.attn.qkv", "blocks.0.mlp.fc1"}
    assert "layer_norm" in units.frozen["blocks.0.attn.proj"]


def test_units_by_scale_factors_are_those_of_the_factors() -> None:
    model = residual()
    units = units_of(model, scales_only=True)
    scales = ScaleFactors.of(model, units.graph)
    assert units.layers == scales.layers
    assert torch.equal(units.layer[scales.groups], scales.layer)
    assert int(units.free.sum()) == len(scales.groups) == units.size
    local = torch.rand(len(scales.groups))
    assert torch.equal(units.from_scales(local)[scales.groups].float(), local)
    with pytest.raises(ChannelError, match="no BatchNorm scale factor"):
        units_of(Chain(norm=False), scales_only=True)


def test_what_does_not_train_stays_with_all_that_is_tied_to_it() -> None:
    model = randomise(Chain())
    model.features[3].weight.requires_grad_(False)
    model.features[1].bias.requires_grad_(False)
    for scales_only, names in ((True, ("features.1", "features.4")), (False, ("features.0", "features.3"))):
        units = units_of(model, trains=lambda p: p.requires_grad, scales_only=scales_only)
        assert [units.frozen[name] for name in names] == [UNTRAINED] * 2
        assert int(units.free.sum()) == 6
        assert len(units.layers) == 1
        score = torch.zeros(units.size)
        selector = Selector(units, rule=None, budget=None, delta=1.0, min_channels=2, divisor=1)
        assert selector.select(score).kept == ((2, 6),)
    for p in model.parameters():
        p.requires_grad_(False)
    units = units_of(model, trains=lambda p: p.requires_grad)
    with pytest.raises(PlanError, match=r"no channel of Chain may be removed: features\.0: frozen \(requires_grad"):
        Selector(units, rule=None, budget=None, delta=1.0, min_channels=1, divisor=1).select(torch.zeros(units.size))


def test_layers_are_excluded_by_the_names_of_tensors_and_modules() -> None:
    model = residual()
    for pattern in ("blocks.0.0.0", "blocks.0.0.*", "blocks.0.0.0.weight"):
        units = units_of(model, exclude=(pattern,))
        assert units.frozen["blocks.0.0.0"] == "excluded"
        assert ("blocks.1.0.0",) in units.layers
    assert "blocks.1.2" in units_of(model, exclude=("blocks.0.2",)).frozen  # the stream is tied to it
    with pytest.raises(ChannelError, match="exclude pattern 'nowhere' matches no layer"):
        units_of(model, exclude=("nowhere",))


def test_values_of_channels_become_values_of_groups() -> None:
    units = units_of(residual())
    first, last = torch.arange(8.0), torch.arange(8.0) * 3
    found = units.aggregate({"blocks.0.2.weight": first, "blocks.1.3": last})  # a weight and a norm of one stream
    ids = units.graph.axes["blocks.0.2.weight"][0]
    assert found[ids].tolist() == [2.0 * i for i in range(8)]
    assert int((found == math.inf).sum()) == units.size - 8
    assert units.aggregate({"blocks.0.2": first, "blocks.1.3": last}, "max")[ids].tolist() == last.tolist()
    with pytest.raises(PlanError, match=r"expected \(8,\)"):
        units.aggregate({"blocks.0.2": torch.ones(7)})


def test_outputs_of_a_transposed_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 4, 2, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    units = units_of(model.eval(), scales_only=True)
    assert set(units.sites()) == {"1", "2"}
    assert torch.equal(units.sites()["1"], units.graph.axes["2.weight"][0])
    assert units.aggregate({"1": torch.arange(4.0)})[units.sites()["2"]].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_only_trained_scale_factors_of_zero_are_proof() -> None:
    model = residual("blocks.0.0.1")
    units = units_of(model)
    assert torch.equal(units.proven_zero().nonzero()[:, 0], units.graph.axes["blocks.0.0.1.weight"][0].sort().values)
    model.blocks[0][0][1].weight.requires_grad_(False)
    assert not units_of(model, trains=lambda p: p.requires_grad).proven_zero().any()
    assert not units_of(model, exclude=("blocks.0.0.1",)).proven_zero().any()
    assert not units_of(randomise(Chain(norm=False))).proven_zero().any()
