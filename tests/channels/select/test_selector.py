"""Scale factors by channel group, and selections that meet their budget."""

import functools

import pytest
import timm
import torch

from lightning_prune.channels import ChannelError, ChannelGraph, PlanError
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits

X = torch.randn(2, 3, 64, 64)
DEFAULTS = {"rule": "css", "budget": ("macs", 0.5), "delta": 1e-3, "min_channels": 0.05, "divisor": 1}


@functools.cache
def traced(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.weight.uniform_(0.1, 1.0)
    return model, ChannelGraph.trace(model, X)


def parts(name, exclude=(), **options):
    """Of a network that is made and traced once for all tests."""
    model, graph = traced(name)
    units = ChannelUnits.of(model, graph, exclude=exclude, scales_only=True)
    return model, graph, units.scales, Selector(units, **(DEFAULTS | options))


def select(selector, **options):
    scales = selector.units.scales
    return selector.select(selector.units.from_scales(scales.importance(scales.read())), **options)


def test_importance_is_the_root_mean_square_of_tied_factors_and_spreading_scales_them_alike():
    model, graph, factors, _ = parts("resnet18")
    gamma = factors.read()
    sizes = factors.importance(gamma)
    stream = {f"{n}.weight" for n in ("bn1", "layer1.0.bn2", "layer1.1.bn2")}  # one residual stream
    layer = factors.layers.index(("bn1", "layer1.0.bn2", "layer1.1.bn2"))
    tied = torch.stack([p.detach() for n, p in model.named_parameters() if n in stream])
    torch.testing.assert_close(sizes[factors.layer == layer].sort().values, tied.square().mean(0).sqrt().sort().values)
    ratio = torch.rand(len(factors.groups))
    factors.write(gamma * factors.spread(ratio, 1.0))
    torch.testing.assert_close(factors.importance(factors.read()), sizes * ratio)
    factors.write(gamma)  # as it was, for the other tests
    assert graph.norm_channels()[0] == len(gamma)
    assert factors.members.sum() == len(gamma)


def test_excluded_norms_keep_their_channels_with_all_that_is_tied_to_them():
    _, _, factors, selector = parts("resnet18", exclude=["layer1.0.bn2", "layer2.*.bn1"])
    for name in ("bn1", "layer1.0.bn2", "layer1.1.bn2", "layer2.0.bn1", "layer2.1.bn1"):
        assert factors.frozen[name] == "excluded"
    selection = select(selector)
    ids = selector.units.graph.axes["bn1.weight"][0]
    assert bool(selection.keep[ids].all())


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(ChannelError, match=r"exclude pattern 'layer9.\*' matches no BatchNorm.*like 'layer"):
        parts("resnet18", exclude=["layer9.*"])


@pytest.mark.parametrize("rule", ["css", "mass", "exp", "global"])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mixnet_s"])
@pytest.mark.parametrize("budget", [("macs", 0.4), ("params", 0.6)])
def test_budget_is_met_within_one_percent_with_floors_kept(name, rule, budget):
    _, _, _, selector = parts(name, rule=rule, budget=budget)
    selection = select(selector)
    resource, share = budget
    assert share * 0.99 <= selection.numbers()[resource] <= share
    assert all(kept >= max(1, 0.05 * total) for kept, total in selection.kept)
    assert 0 < selection.channels < 1


def test_channel_counts_are_aligned_on_request():
    _, graph, factors, selector = parts("mixnet_s", divisor=8)
    selection = select(selector)
    assert selection.macs <= 0.5
    for name in factors.names:
        ids = graph.axes[f"{name}.weight"][0]
        kept = int(((ids < 0) | selection.keep[ids.clamp_min(0)]).sum())
        assert kept % 8 == 0 or kept == len(ids)


def test_fresh_norms_have_no_order_yet_a_budget_is_met_all_the_same():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10, zero_init_last=True)
    graph = ChannelGraph.trace(model, X)
    units = ChannelUnits.of(model, graph, scales_only=True)
    free = select(Selector(units, **DEFAULTS | {"budget": None}))
    assert bool(free.keep.all())  # nothing tells channels apart, so nothing goes
    assert 0.495 <= select(Selector(units, **DEFAULTS)).macs <= 0.5


def test_a_budget_out_of_reach_names_what_holds_it_back():
    _, _, _, selector = parts("resnet18", exclude=["layer4.*"], budget=("macs", 0.05), min_channels=0.5)
    with pytest.raises(PlanError, match=r"target_macs=0.05 cannot be met: 0\.\d+ stays.*layer4.*Raise the target"):
        select(selector)


def test_no_removable_scale_factor_is_an_error():
    model = timm.create_model("test_vit", num_classes=10)
    graph = ChannelGraph.trace(model, torch.randn(2, 3, 160, 160))
    with pytest.raises(ChannelError, match="no BatchNorm scale factor"):
        ScaleFactors.of(model, graph)
