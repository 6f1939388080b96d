"""A selection of channel groups, written down as a plan."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.keep import kept_mask
from lightning_prune.channels.surgery.empty import empty_paths
from lightning_prune.channels.surgery.widths import attribute_changes
from lightning_prune.plan.cut import Cut
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.modes import split_input
from lightning_prune.support.tensors import state_tensors


def make_plan(model: nn.Module, graph: ChannelGraph, keep: Tensor, example_input: Any, form: str) -> PruningPlan:
    """Writes down what keeping some groups, bool [groups], leaves of a model.

    Args:
        form: "eager" or "graph", see `PruningPlan`.
    """
    cuts: dict[str, Cut] = {}
    for name, dims in graph.axes.items():
        kept = {}
        for dim, ids in dims.items():
            mask = kept_mask(ids, keep)
            if not bool(mask.all()):
                kept[dim] = tuple(mask.nonzero().flatten().tolist())
        if kept:
            cuts[name] = Cut(graph.shapes[name], kept)
    state = state_tensors(model)
    owners = {id(state[name]): name for name in cuts}
    for name, tensor in state.items():  # a tensor with two names is exported under one of them
        if id(tensor) in owners:
            cuts[name] = cuts[owners[id(tensor)]]
    args, kwargs = split_input(example_input)
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    inputs = tuple((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors)
    settings: dict[str, Any] = {"groups": graph.options.groups, "attention": graph.options.attention}
    if graph.options.allow_inexact:
        settings["allow_inexact"] = sorted(graph.options.allow_inexact)
    attributes = attribute_changes(model, graph, keep)
    return PruningPlan(cuts, attributes, form, inputs, settings, empty_paths(cuts))
