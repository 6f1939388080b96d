"""Branches that are removed by the scale factors."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from lightning_prune.channels import ChannelGraph
from lightning_prune.channels.remove import remove_channels
from lightning_prune.channels.select.selection import Selection
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.channels.surgery.empty import branch_names
from tests.channels.branching import EXAMPLE, prune_whole, residual, train
from tests.channels.models import conv_bn


def make_selector(model: nn.Module, exclude: tuple[str, ...] = (), **options: Any) -> Selector:
    units = ChannelUnits.of(model, ChannelGraph.trace(model, EXAMPLE), exclude=exclude, scales_only=True)
    defaults = {"rule": "css", "budget": None, "delta": 1e-3, "min_channels": 0.5, "divisor": 1}
    return Selector(units, **(defaults | options))


def select(selector: Selector, **options: Any) -> Selection:
    scales = selector.units.scales
    assert scales is not None
    return selector.select(selector.units.from_scales(scales.importance(scales.read())), **options)


def test_a_selection_counts_branches_that_are_removed() -> None:
    model = residual("blocks.0.0.1")
    selector = make_selector(model)
    selection = select(selector)
    small = copy.deepcopy(model)
    result = remove_channels(small, EXAMPLE, selector, selection)
    assert torch.equal(result.keep, selection.keep)
    assert branch_names(result.plan) == ("blocks.0",)
    assert selection.kept[selector.units.layers.index(("blocks.0.0.1",))] == (0, 6)
    assert selection.params == sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    # what a budget asks for beyond that comes from the other layers
    selector = make_selector(model, budget=("macs", 0.4), min_channels=1)
    assert select(selector).macs <= 0.4 < selection.macs
    # excluded layers stay, and a layer with one factor that is not zero keeps its floor
    selector = make_selector(model, exclude=("blocks.0.*",))
    assert bool(select(selector).keep.all())
    nn.init.constant_(model.blocks[0][0][1].weight[:1], 1e-3)
    selector = make_selector(model)
    assert select(selector).kept[selector.units.layers.index(("blocks.0.0.1",))] == (3, 6)


def test_norms_that_start_at_zero_are_given_their_time() -> None:
    model = residual("blocks.0.3", shift=False)
    selector = make_selector(model)
    assert bool(select(selector).keep.all())
    last = select(selector, removal=True)
    assert branch_names(remove_channels(copy.deepcopy(model), EXAMPLE, selector, last).plan) == ("blocks.0",)
    selector = make_selector(model, exclude=("blocks.0.0.1",))
    assert bool(select(selector, removal=True).keep.all())


def test_what_is_excluded_or_listed_stays_in_a_branch_that_goes() -> None:
    model = residual("blocks.0.0.1", between=conv_bn(6, 6))
    selector = make_selector(model, exclude=("blocks.0.1.1",))
    selection = select(selector)
    small = copy.deepcopy(model)
    remove_channels(small, EXAMPLE, selector, selection)
    prune_whole(model, EXAMPLE, keep={"blocks.0.0.1": [], "blocks.0.1.1": range(6)})
    for each in (small, model):
        assert [m.out_channels for m in each.blocks[0].modules() if isinstance(m, nn.Conv2d)] == [0, 6, 8]
        train(each, torch.optim.SGD(each.parameters(), 1e-3), EXAMPLE)


def test_a_score_of_zero_empties_nothing() -> None:
    selector = make_selector(residual(), rule=None, delta=1.0, min_channels=1)
    selection = selector.select(torch.zeros(selector.units.size), removal=True)
    assert all(kept == 1 for kept, _ in selection.kept)
    assert not selection.empty.any()
