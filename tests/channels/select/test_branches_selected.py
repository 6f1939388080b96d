"""Branches that go whole by the scale factors' choice."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from lightning_prune.channels import ChannelGraph
from lightning_prune.channels.select.scales import ScaleFactors
from lightning_prune.channels.select.selector import Chooser
from lightning_prune.channels.surgery.empty import branch_names
from tests.channels.branching import EXAMPLE, prune_whole, residual, train
from tests.channels.models import conv_bn


def chooser(model: nn.Module, exclude: tuple[str, ...] = (), **options: Any) -> tuple[ScaleFactors, Chooser]:
    graph = ChannelGraph.trace(model, EXAMPLE)
    factors = ScaleFactors.of(model, graph, exclude)
    defaults = {"rule": "css", "budget": None, "delta": 1e-3, "min_channels": 0.5, "divisor": 1}
    return factors, Chooser(model, graph, factors, **(defaults | options))


def test_a_choice_counts_branches_that_go_whole() -> None:
    model = residual("blocks.0.0.1")
    factors, choose = chooser(model)
    choice = choose.choose(factors.sizes(factors.read()))
    small = copy.deepcopy(model)
    result = choose.cut(small, EXAMPLE, choice.keep, constants="fold")
    assert torch.equal(result.keep, choice.keep)
    assert branch_names(result.plan) == ("blocks.0",)
    assert choice.kept[factors.layers.index(("blocks.0.0.1",))] == (0, 6)
    assert choice.params == sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    # what a budget asks for beyond that comes from the other layers
    factors, choose = chooser(model, budget=("macs", 0.4), min_channels=1)
    assert choose.choose(factors.sizes(factors.read())).macs <= 0.4 < choice.macs
    # excluded layers stay, and one factor that is alive keeps its floor
    factors, choose = chooser(model, exclude=("blocks.0.*",))
    assert bool(choose.choose(factors.sizes(factors.read())).keep.all())
    nn.init.constant_(model.blocks[0][0][1].weight[:1], 1e-3)
    factors, choose = chooser(model)
    assert choose.choose(factors.sizes(factors.read())).kept[factors.layers.index(("blocks.0.0.1",))] == (3, 6)


def test_norms_that_have_yet_to_wake_are_given_their_time() -> None:
    model = residual("blocks.0.3", shift=False)
    factors, choose = chooser(model)
    sizes = factors.sizes(factors.read())
    assert bool(choose.choose(sizes).keep.all())
    last = choose.choose(sizes, last=True)
    assert branch_names(choose.cut(copy.deepcopy(model), EXAMPLE, last.keep).plan) == ("blocks.0",)
    factors, choose = chooser(model, exclude=("blocks.0.0.1",))
    assert bool(choose.choose(factors.sizes(factors.read()), last=True).keep.all())


def test_what_is_excluded_or_listed_stays_in_a_branch_that_goes() -> None:
    model = residual("blocks.0.0.1", between=conv_bn(6, 6))
    factors, choose = chooser(model, exclude=("blocks.0.1.1",))
    choice = choose.choose(factors.sizes(factors.read()))
    small = copy.deepcopy(model)
    choose.cut(small, EXAMPLE, choice.keep, constants="fold")
    prune_whole(model, EXAMPLE, keep={"blocks.0.0.1": [], "blocks.0.1.1": range(6)})
    for each in (small, model):
        assert [m.out_channels for m in each.blocks[0].modules() if isinstance(m, nn.Conv2d)] == [0, 6, 8]
        train(each, torch.optim.SGD(each.parameters(), 1e-3), EXAMPLE)
