"""Factors for groups that have none: which groups get one, and that it can go into the weights where it stands."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.gated import Scales, scaled_units
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.taps import scale_readers_
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.errors import ChannelError
from lightning_prune.masks import attach, detach
from lightning_prune.masks.scales import scale_gates
from tests.channels.models import Attention, Chain, randomise

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def units_of(model: nn.Module, scales: Scales = "auto", attention: str = "dims", **options: Any) -> ChannelUnits:
    return scaled_units(model, ChannelGraph.trace(model, IMAGE, attention=attention), scales=scales, **options)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.GELU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.GroupNorm(3, 6), nn.SiLU(),
        nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(4 * 256, 5), nn.Sigmoid(), nn.Linear(5, 2),
    )  # fmt: skip


def transformer() -> nn.Module:
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "init_values": 0.5}
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **size)


def convnext() -> nn.Module:
    size = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "patch_size": 1, "ls_init_value": 0.5}
    return timm.create_model("convnext_atto", num_classes=5, **size)


class Separate(nn.Module):
    """Attention whose queries, keys and values have layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(((self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)).mean(1))


CASES: dict[str, tuple[Any, Scales, str]] = {
    "convolutions": (convolutions, "auto", "dims"),
    "heads": (transformer, "auto", "heads"),
    "LayerScale": (convnext, "auto", "dims"),
    "beside BatchNorm": (lambda: randomise(Attention()), "auto", "dims"),
    "queries and keys": (Separate, "auto", "dims"),  # gates on both sides of their layers
}


@pytest.mark.parametrize("case", CASES)
def test_gated_is_folded(case: str) -> None:
    torch.manual_seed(0)
    make, scales, attention = CASES[case]
    model = make().eval()
    units = units_of(model, scales, attention)
    factors = units.scales
    assert factors is not None
    assert sum(map(len, factors.gates)) == (len(factors.groups) if case != "beside BatchNorm" else 4)
    x, plain = IMAGE.double(), model.double()(IMAGE.double())
    gates = scale_gates(factors, units.taps)
    attach(model, gates)
    torch.testing.assert_close(model(x), plain)  # they start at one
    for gate in factors.gates:
        gate.data.uniform_(0.2, 1.5)
        gate.data[0] = 0.0
    gated = model(x)
    gated.square().sum().backward()
    assert all(gate.grad is not None and bool(gate.grad.any()) for gate in factors.gates)
    detach(model)
    assert (gated - plain).abs().max() > 1e-4
    assert scale_readers_(model, units.taps, factors.gate_values(units.size)) == []
    torch.testing.assert_close(model(x), gated)


def test_batchnorm_everywhere_needs_none() -> None:
    model = randomise(Chain())
    units, old = units_of(model), ChannelUnits.of(model, ChannelGraph.trace(model, IMAGE), scales_only=True)
    assert units.scales is not None
    assert units.scales.gates == ()
    assert units.layers == old.layers
    assert torch.equal(units.layer, old.layer)
    assert units_of(model, exclude=("features.0",)).layers == units.layers[1:]
    with pytest.raises(ChannelError, match="matches no layer"):
        units_of(model, exclude=("nowhere",))


def test_only_groups_without_a_factor_get_one() -> None:
    model = randomise(Chain())
    model.features[4] = nn.Identity()  # of the norms after 8, 12 and 6 channels
    units = units_of(model)
    factors = units.scales
    assert isinstance(factors, ScaleFactors)
    assert factors.layers == (("features.1",), ("features.7",), ("features.3",))
    assert [len(gate) for gate in factors.gates] == [12]
    assert torch.equal(factors.groups[factors.slot[-12:]], units.graph.axes["features.3.weight"][0].sort().values)
    values = torch.arange(26.0)
    factors.write(values)
    assert torch.equal(factors.read(), values)
    assert torch.equal(factors.gate_values(units.size)[factors.gated()[0]], values[-12:])
    factors.write(torch.zeros(26))
    assert int(units.proven_zero().sum()) == 14  # a gate proves nothing
    assert units_of(model, exclude=("features.3",)).scales.gates == ()  # type: ignore[union-attr]


def refused(name: str) -> tuple[nn.Module, str, str]:
    """A network, what gets no gate, and a part of the reason."""
    net = Chain(widths=(8, 8, 8), norm=False)
    if name == "standardised":
        net.features[2] = timm.layers.StdConv2d(8, 8, 3, padding=1)
    if name == "shared":
        net.other = nn.Conv2d(8, 8, 3)
        net.other.weight = net.features[2].weight
    if name == "frozen":
        net.features[2].weight.requires_grad_(False)
    if name == "standardised":
        return net, "features.0", "(StdConv2d): the weight is computed while running"
    return net, "input of features.2", "shared by layers" if name == "shared" else "not train"


@pytest.mark.parametrize("name", ["standardised", "shared", "frozen"])
def test_no_gate_where_it_could_not_go_into_a_weight(name: str) -> None:
    model, where, why = refused(name)
    units = units_of(model, trains=lambda p: p.requires_grad)
    assert why in units.frozen[where]
    assert not any("features.0" in names for names in units.layers)
    assert ("features.4",) in units.layers


def test_nothing_to_scale_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 8, 8]), nn.Conv2d(4, 2, 1))
    with pytest.raises(ChannelError, match=r"Sequential has no channel that may be removed .* a gate: "):
        units_of(model)
