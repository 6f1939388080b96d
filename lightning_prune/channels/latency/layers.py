"""The layers whose time depends on the channels that stay: what they compute, as a function of their two widths."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.operator_schemas import normalize_function

from lightning_prune.channels.graph.cost import traced_batch
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.graph.propagate import operator_name, shape_of
from lightning_prune.channels.graph.vectors import kept_count
from lightning_prune.channels.trace.sites import module_path

_CONVS = ("conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class LayerShape:
    """A convolution, or with an empty kernel a linear layer: all that the time of a call depends on.

    Attributes:
        inputs, outputs: channels.
        size: of the input behind its channels; of a linear layer the rows of a sample.
        kernel, stride, padding, dilation: one number for each dim of ``size``; () for a linear layer.
        groups: of the convolution.
        batch: samples in a call.
    """

    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    batch: int = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[batch, inputs, size..], of a linear layer [batch, rows, inputs]."""
        if self.kernel:
            return (self.batch, self.inputs, *self.size)
        return (self.batch, *self.size, self.inputs)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[outputs, inputs / groups, kernel..]."""
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    def macs(self) -> int:
        """Multiply-accumulates of a call."""
        steps = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=False)
        places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in steps]
        return self.batch * math.prod(places or self.size) * math.prod(self.weight_shape)

    def __str__(self) -> str:
        """A name that tells every number: the key of a table of times."""
        size = "x".join(map(str, self.size))
        if not self.kernel:
            return f"linear {self.inputs} {self.outputs} at {self.batch}x{size}"
        parts = (self.kernel, self.stride, self.padding, self.dilation)
        how = " ".join("x".join(map(str, numbers)) for numbers in parts)
        return f"conv {self.inputs} {self.outputs} at {self.batch}x{size}: {how} {self.groups}"


@dataclass(frozen=True)
class TimedLayer:
    """A call of a convolution or linear layer with a width that can shrink.

    Attributes:
        name: path of the module that makes the call.
        shape: as it was traced.
        rows: group of each output channel, int64 [outputs], -1 - r where it stays.
        columns: group of each index in dim 1 of the weight, int64 [inputs / groups]; None where that width is fixed.
        whole: whether groups of the convolution go whole, as in a depthwise one; else their number stays.
    """

    name: str
    shape: LayerShape
    rows: Tensor
    columns: Tensor | None
    whole: bool

    def at(self, rows: int, columns: int) -> LayerShape:
        """The layer with so many rows and columns of its weight."""
        groups = self.shape.groups
        if self.whole:
            groups = max(1, round(groups * rows / self.shape.outputs))
        return replace(self.shape, inputs=columns * groups, outputs=rows, groups=groups)

    def steps(self) -> tuple[int, int]:
        """What rows and columns are multiples of: whole groups of a grouped convolution, or a row of each."""
        if self.whole:
            return self.shape.outputs // self.shape.groups, 1
        return self.shape.groups, 1


def timed_layers(graph: ChannelGraph, batch: int) -> list[TimedLayer]:
    """The layers of a graph, in order; one that is called twice comes twice."""
    found, samples = [], traced_batch(graph)
    for product in graph.products:
        node, name = product.node, operator_name(product.node.target)
        if name in (*_CONVS, "linear") and any(bool((ids >= 0).any()) for ids in product.ids):
            shape = _shape(node, name, batch, samples)
            rows, columns = _sides(product.ids, shape)
            depthwise = shape.groups > 1 and shape.inputs == shape.groups
            whole = shape.groups > 1 and (depthwise or graph.options.groups == "whole")
            found.append(TimedLayer(module_path(node)[0], shape, rows, columns, whole))
    return found


def _sides(ids: tuple[Tensor, ...], shape: LayerShape) -> tuple[Tensor, Tensor | None]:
    """The groups of the two dims of a weight, of which a dim of one index has none."""
    fixed = torch.full((shape.outputs,), -1, dtype=torch.int64)
    columns = shape.inputs // shape.groups
    if len(ids) == 1 and len(ids[0]) != shape.outputs:
        ids = (fixed, ids[0])
    rows, *rest = ids
    free = [v for v in rest if len(v) == columns and bool((v >= 0).any())]
    return rows, free[0] if free else None


def _shape(node: Node, name: str, batch: int, samples: int) -> LayerShape:
    """A call's shapes and numbers with another batch; samples: those that it was traced with."""
    bound = normalize_function(node.target, node.args, node.kwargs, normalize_to_only_use_kwargs=True)  # type: ignore[arg-type]
    assert bound is not None
    given = bound.kwargs
    x, weight = shape_of(given["input"].meta["val"]), shape_of(given["weight"].meta["val"])
    if name == "linear":
        return LayerShape(x[-1], weight[0], (math.prod(x[:-1]) // samples,), batch=batch)
    size, kernel, schema = x[2:], weight[2:], {a.name: a.default_value for a in node.target._schema.arguments}  # type: ignore[union-attr]

    def numbers(option: str) -> tuple[int, ...]:
        value: Any = given.get(option, schema[option])
        if value == "valid":
            value = 0
        listed = [value] if isinstance(value, int) else list(value)
        return tuple(int(v) for v in (listed * len(size) if len(listed) == 1 else listed))

    dilation = numbers("dilation")
    batch *= max(1, x[0] // samples)  # frames or windows may lie in the batch
    same = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    padding = same if given.get("padding") == "same" else numbers("padding")
    groups = int(given.get("groups", schema["groups"]))
    return LayerShape(x[1], weight[0], size, kernel, numbers("stride"), padding, dilation, groups, batch)


def kept_widths(layer: TimedLayer, keep: Tensor) -> tuple[int, int]:
    """(rows, columns) of a layer's weight when groups stay, bool [groups]."""
    columns = layer.shape.inputs // layer.shape.groups
    return kept_count(layer.rows, keep), columns if layer.columns is None else kept_count(layer.columns, keep)
