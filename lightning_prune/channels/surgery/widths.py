"""A selection written down as a plan, and the attributes of modules that hard-code a width with it.

Most attributes are found by themselves: an operator of the module has an integer argument that counts channels (a
split size, a slice bound, a size in a view), and the module has an attribute of that value. What an attribute's value
does not show (a half, a sum) stands in `ADAPTERS`, by the class's name, so that nothing has to be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.vectors import kept_count
from lightning_prune.channels.surgery.denominators import denominators_of
from lightning_prune.channels.surgery.empty import empty_paths
from lightning_prune.channels.trace.sites import Count
from lightning_prune.plan.cut import Change, Cut
from lightning_prune.plan.plan import PruningPlan
from lightning_prune.support.modes import split_input
from lightning_prune.support.tensors import state_tensors


@dataclass(frozen=True)
class Widths:
    """The widths of one module, before and after.

    Attributes:
        path: the module's path.
        counts: the integers in its own forward that count channels.
        counted: {id of a vector of the graph: how many of its channels stay}, of those that can change.
    """

    graph: ChannelGraph
    path: str
    counts: tuple[Count, ...]
    counted: dict[int, int]

    def left(self, ids: Tensor) -> int:
        """How many channels of a vector of the graph stay."""
        return self.counted.get(id(ids), len(ids))

    def new(self, before: int) -> int | None:
        """The width that replaces `before`, or None if no integer of that value counts channels here."""
        found = {self.left(c.ids) for c in self.counts if c.value == before}
        return found.pop() if len(found) == 1 else None

    def groups(self) -> int | None:
        """The new number of groups of a convolution or a norm in this module."""
        found = {self.left(c.ids) for c in self.counts if c.argument in ("groups", "num_groups")}
        return found.pop() if len(found) == 1 else None

    def size(self, tensor: str, dim: int) -> int | None:
        """The new size of a dim of a tensor below this module, or None if there is no such tensor."""
        name = f"{self.path}.{tensor}" if self.path else tensor
        shape = self.graph.shapes.get(name)
        if shape is None or dim >= len(shape):
            return None
        ids = self.graph.axes.get(name, {}).get(dim)
        return shape[dim] if ids is None else self.left(ids)


def _cross_stage(module: Any, widths: Widths) -> dict[str, Any]:
    half = widths.new(module.expand_chs // 2)
    return {"expand_chs": None if half is None else 2 * half}


def _shsa(module: Any, widths: Widths) -> dict[str, Any]:
    attended, rest = widths.new(module.pdim), widths.new(module.dim - module.pdim)
    return {
        "pdim": attended,
        "qk_dim": widths.new(module.qk_dim),
        "dim": None if attended is None or rest is None else attended + rest,
    }


def _selective_kernel(module: Any, widths: Widths) -> dict[str, Any]:
    if not module.split_input:
        return {}
    part = widths.new(module.in_channels // module.num_paths)
    return {"in_channels": None if part is None else part * module.num_paths}


ADAPTERS: dict[str, Callable[[Any, Widths], dict[str, int | tuple[int, ...] | None]]] = {
    "CrossStage": _cross_stage,
    "CrossStage3": _cross_stage,
    "SHSA": _shsa,
    "SelectiveKernel": _selective_kernel,
}
"""{class name: function (module, widths) -> {attribute: new value, None where unknown}}"""


def _standard(module: nn.Module, widths: Widths) -> dict[str, Any]:
    """Sizes that torch's own layers repeat as attributes; recognised by the attributes, not by the class."""
    weight, new = module._parameters.get("weight"), dict[str, Any]()
    if weight is None:
        recurrent = {nn.RNNBase: "weight_ih_l0", nn.RNNCellBase: "weight_ih"}
        return next(
            ({"input_size": widths.size(w, 1)} for kind, w in recurrent.items() if isinstance(module, kind)), new
        )
    rows, columns = widths.size("weight", 0), widths.size("weight", 1)
    if weight.ndim >= 3 and all(hasattr(module, name) for name in ("in_channels", "out_channels", "groups")):
        groups = int(module.groups)  # type: ignore[arg-type]
        if groups > 1:
            found = widths.groups()  # none are left of a depthwise layer in a branch that is removed
            groups = groups if found is None else found
        new["groups"] = groups
        names = ("out_channels", "in_channels")
        first, second = reversed(names) if getattr(module, "transposed", False) else names
        new[first], new[second] = rows, None if columns is None else columns * groups
    elif hasattr(module, "in_features") and hasattr(module, "out_features"):
        new["out_features"], new["in_features"] = rows, columns
    elif hasattr(module, "num_groups") and hasattr(module, "num_channels"):
        new["num_groups"], new["num_channels"] = widths.groups(), rows
    elif hasattr(module, "num_features"):
        new["num_features"] = rows
    elif hasattr(module, "num_parameters"):
        new["num_parameters"] = rows
    return new


NOT_WIDTHS = (
    "num_heads", "heads", "num_paths", "num_groups", "num_scales", "num_experts", "radix", "cardinality",
    "kernel_size", "stride", "padding", "dilation", "window_size", "resolution", "num_classes", "image_size",
    "img_size", "patch_size",
)  # fmt: skip
"""Attributes that count something else; they may have the value of a width by chance."""


def plain_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Iterates over a module's own public attributes that are integers or sequences of integers.

    But for negative ones, as no width is: a view of -1 takes whatever is left, and as an attribute -1 may be an axis.
    """
    for name, value in vars(module).items():
        if name.startswith("_") or name in NOT_WIDTHS or isinstance(value, bool) or (type(value) is int and value < 0):
            continue
        if isinstance(value, int) or (
            isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value)
        ):
            yield name, value


def _inferred(module: nn.Module, widths: Widths) -> dict[str, Any]:
    """Attributes whose value is the value of an integer that counts channels in the module's own forward."""
    lists: dict[tuple[Any, str], dict[int, Count]] = {}
    for count in widths.counts:
        if count.position is not None:
            lists.setdefault((count.node, count.argument), {})[count.position] = count
    new: dict[str, Any] = {n: widths.new(v) for n, v in plain_attributes(module) if isinstance(v, int)}
    if widths.graph.options.attention == "heads":
        heads = {name: getattr(module, name, None) for name in ("num_heads", "heads")}
        new |= {name: widths.new(value) for name, value in heads.items() if isinstance(value, int)}
    for name, value in plain_attributes(module):
        if isinstance(value, int):
            continue
        for (node, argument), counts in lists.items():  # split sizes are matched as a whole
            if [c.value for _, c in sorted(counts.items())] == list(value):
                new[name] = tuple(widths.left(c.ids) for _, c in sorted(counts.items()))
                break
            if argument == "sizes" and list(value) == list(node.args[2]):  # unflatten: the others count pixels
                counted = {i: widths.left(c.ids) for i, c in counts.items() if value[i] != -1}
                new[name] = tuple(counted.get(i, size) for i, size in enumerate(value))
                break
    return new


def attribute_changes(model: nn.Module, graph: ChannelGraph, keep: Tensor) -> dict[str, dict[str, Change]]:
    """Returns {module path: {attribute: change}} for the channel groups that stay."""
    counts = counts_by_module(graph)
    counted = {id(ids): n for v in graph.widths for ids, n in zip(v.each, v.counts(keep), strict=True)}
    changes: dict[str, dict[str, Change]] = {}
    for path, module in model.named_modules():
        widths = Widths(graph, path, tuple(counts.get(path, ())), counted)
        new = _standard(module, widths)
        if not new and widths.counts:
            new = {**_inferred(module, widths), **ADAPTERS.get(type(module).__name__, lambda m, w: {})(module, widths)}
        for name, after in new.items():
            before = getattr(module, name)
            before = tuple(before) if isinstance(before, (list, tuple)) else before
            if after is not None and before != after:
                changes.setdefault(path, {})[name] = Change(before, after)
    return changes


def counts_by_module(graph: ChannelGraph) -> dict[str, list[Count]]:
    """{module path: the integers in its own forward that count channels}"""
    found: dict[str, list[Count]] = {}
    for count in graph.counts:
        found.setdefault(count.module, []).append(count)
    return found


def expressible(graph: ChannelGraph, model: nn.Module, failed: str, keep_all: bool) -> list[tuple[Tensor, ...]]:
    """Equal widths that a module's code may take for granted without showing it in an attribute.

    `reshape(B, N, C)` with C from the input's shape ties a view's width to the width that comes in. Asked for only
    after the module at `failed` has failed; returns the groups for all modules of its class. With `keep_all`, gives up
    on the widths that such modules take in and count, and keeps all of their channels.
    """
    kind = type(model.get_submodule(failed))
    paths = {path for path, module in model.named_modules() if type(module) is kind}
    groups: list[tuple[Tensor, ...]] = []
    for path in paths:
        if keep_all:
            counted = [c.ids for c in graph.counts if c.module == path]
            groups += [(ids, torch.full_like(ids, -1)) for ids in [*counted, *graph.inputs.get(path, ())]]
            continue
        by_value: dict[int, list[Tensor]] = {}
        for count in graph.counts:
            if count.module == path and count.argument in ("size", "shape"):
                by_value.setdefault(count.value, []).append(count.ids)
        for ids in graph.inputs.get(path, ()):
            if len(ids) in by_value:
                by_value[len(ids)].append(ids)
        groups += [tuple(ids) for ids in by_value.values() if len(ids) > 1]
    return groups


def equal_widths(model: nn.Module, graph: ChannelGraph) -> list[tuple[Tensor, ...]]:
    """Returns groups of vectors of group ids whose kept counts must be equal for the model's own code to run.

    Parts of an equal split; and integers in one module that come from one attribute, such as the `key_dim` of all
    heads.
    """
    groups = [part.parts for part in graph.equal_parts]
    groups += [(pick.before, torch.full_like(pick.before, -1)) for pick in graph.picks]  # its numbers stay, so all stay
    for path, counts in counts_by_module(graph).items():
        module = model.get_submodule(path)
        for value in {v for _, v in plain_attributes(module) if isinstance(v, int)}:
            same = tuple(c.ids for c in counts if c.value == value and c.argument not in ("groups", "num_groups"))
            if len(same) > 1:
                groups.append(same)
    return groups


def make_plan(model: nn.Module, graph: ChannelGraph, keep: Tensor, example_input: Any, form: str) -> PruningPlan:
    """Writes down what keeping some groups, bool [groups], leaves of a model; form: see `PruningPlan`."""
    cuts: dict[str, Cut] = {}
    masks = {id(ids): mask for v in graph.widths for ids, mask in zip(v.each, v.masks(keep), strict=True)}
    known = {key: tuple(mask.nonzero().flatten().tolist()) for key, mask in masks.items()}
    for name, dims in graph.axes.items():
        kept = {}
        for dim, ids in dims.items():
            if len(known.get(id(ids), ids)) < len(ids):
                kept[dim] = known[id(ids)]
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
    if graph.options.norms != "keep":
        settings["norms"] = graph.options.norms
    if graph.options.allow_inexact:
        settings["allow_inexact"] = sorted(graph.options.allow_inexact)
    attributes = attribute_changes(model, graph, keep)
    counted = denominators_of(graph.denominators, lambda ids: kept_count(ids, keep) < len(ids))
    return PruningPlan(cuts, attributes, form, inputs, settings, empty_paths(cuts), denominators=counted)
