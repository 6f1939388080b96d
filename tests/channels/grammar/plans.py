"""What is asked of a random network, as plain data, and the call that it stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_prune.channels import ChannelGraph, Pruned, prune_channels
from tests.channels.grammar.networks import Description, example
from tests.channels.grammar.steps import Pick

TRACED = ("groups", "attention")
"""Options of the graph."""


def generate(pick: Pick) -> dict[str, Any]:
    """Options of `prune_channels`, and the seed of the scores."""
    how = pick(("ratio", "macs", "ratio", "macs", "params"))
    plan: dict[str, Any] = {"seed": pick(range(100)), how: pick((0.5, 0.3) if how == "ratio" else (0.7, 0.5, 0.9))}
    rare: dict[str, tuple[Any, ...]] = {
        "form": ("auto",) * 6 + ("graph", "eager"),
        "groups": ("tie", "tie", "whole"),
        "attention": ("dims", "dims", "heads"),
        "constants": ("drop",) * 4 + ("fold",),
        "divisor": (1, 1, 1, 1, 2),
        "remove_branches": (False,) * 4 + (True,),
    }
    for name, options in rare.items():
        if (value := pick(options)) != options[0]:
            plan[name] = value
    return plan


def prune(model: nn.Module, description: Description, plan: dict[str, Any]) -> Pruned:
    """Does to a network what a plan asks: scores at random for all tensors whose first dim has channels."""
    options = {name: value for name, value in plan.items() if name != "seed"}
    graph = ChannelGraph.trace(model, example(description), **{n: options.pop(n) for n in TRACED if n in options})
    generator = torch.Generator().manual_seed(plan["seed"])
    scores = {name: torch.rand(len(dims[0]), generator=generator) for name, dims in graph.axes.items() if 0 in dims}
    return prune_channels(model, example(description), scores, graph=graph, **options)
