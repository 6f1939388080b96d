"""`ChannelGraph`: which channel indices of which tensors can only be removed together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels.graph.modes import Traced, label_modes, trace_modes
from lightning_prune.channels.graph.vectors import Vectors
from lightning_prune.channels.trace.call import Context, Options, Value
from lightning_prune.channels.trace.labels import FROZEN_IDS, Labels
from lightning_prune.channels.trace.program import Program
from lightning_prune.channels.trace.sites import Count, Denominator, Frozen, Member, Parts, Pick, Product, Sum
from lightning_prune.support.modes import join_input

_COLUMNS = ("tensor", "channels", "removable", "groups", "why the others stay")


@dataclass(frozen=True, repr=False)
class ChannelGraph:
    """The channel groups of a model: what can only be removed together.

    Attributes:
        axes: {tensor name: {dim: group ids, int64 of shape (size of the dim,)}}. An id from 0 on is a group that may
            be removed; -1 - r is frozen for the reasons `frozen_reasons[r]`. Equal vectors, here and in all places,
            are one tensor.
        shapes: {tensor name: shape}.
        size: the number of removable groups.
        counts, equal_parts: the places in the code that have to change with the channels.
        norms: names of the modules that are batch norms with scale factors.
        sums: the places where channels are summed over.
        products: what the number of multiplications depends on.
        picks: channels picked by constant numbers.
        denominators: the numbers of channels that calls divide by, and shall go on to divide by.
        inputs: {module path: group ids of the channels of each tensor that enters it}.
        traced: the graphs that all this was read from.
        notes: what the user should know about these groups.
    """

    axes: dict[str, dict[int, Tensor]]
    shapes: dict[str, tuple[int, ...]]
    size: int
    frozen_reasons: list[tuple[str, ...]]
    counts: list[Count]
    equal_parts: list[Parts]
    norms: tuple[str, ...]
    inputs: dict[str, list[Tensor]]
    sums: list[Sum]
    products: list[Product]
    picks: list[Pick]
    denominators: list[Denominator]
    traced: Traced
    options: Options
    approximations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def trace(
        cls,
        model: nn.Module,
        example_input: Any,
        *,
        groups: str = "tie",
        attention: str = "dims",
        allow_inexact: Collection[str] = (),
        norms: str = "keep",
        example_kwargs: Mapping[str, Any] | None = None,
    ) -> ChannelGraph:
        """Traces a model with fake tensors: no real compute, and the model is not changed.

        Eval mode counts, and train mode too where other code runs there (auxiliary heads). Hooks are off.

        Args:
            model: any module that runs on fake tensors, or that `torch.export` can export.
            example_input: the one argument, a tuple of positional arguments, or a dict of keyword arguments.
            groups: how an ordinary grouped convolution shrinks: "tie" (the same position in all groups) or "whole".
            attention: "dims" (the same dims of all heads) or "heads" (whole heads).
            allow_inexact: approximations to accept, from ("eca",).
            norms: what becomes of channels whose number something divides by: a LayerNorm, RMSNorm or GroupNorm over
                them (the stream of a transformer, of a ConvNeXt), or attention in its default scale (the dims of
                queries and keys). "keep" leaves them. "exact" removes them, and the norm goes on to count them as
                zeros, see `functional.norms.compensated`, the attention to scale by the dims there were; of a GroupNorm
                each group loses as many.
            example_kwargs: keyword arguments beside positional ones.

        Raises:
            TraceError: the model cannot be traced with this input; the message names its largest part that can.
            ChannelError: an option has an unknown value.
        """
        options = Options(groups, attention, allow_inexact, norms)
        return cls.of_traced(trace_modes(model, join_input(example_input, example_kwargs)), model, options)

    @classmethod
    def of_program(cls, program: Program, model: nn.Module, options: Options, *, free_outputs: int = 0) -> ChannelGraph:
        """Labels a graph of `model`; its outputs freeze, but for the last few that may shrink."""
        return cls.of_traced(Traced(program), model, options, free_outputs=free_outputs)

    @classmethod
    def of_traced(cls, traced: Traced, model: nn.Module, options: Options, *, free_outputs: int = 0) -> ChannelGraph:
        """Labels the programs of `model`; outputs freeze, but for the last few that may shrink."""
        context = Context(Labels(), options)
        tensors, notes = label_modes(traced, context, model, free_outputs)
        norms = tuple(
            name
            for name, m in model.named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and f"{name}.weight" in tensors
        )
        return _finish(cls, context, tensors, traced, norms, notes)

    @property
    def program(self) -> Program:
        """The graph in eval mode."""
        return self.traced.program

    @cached_property
    def groups(self) -> dict[int, list[Member]]:
        """{group id: its members}. Removing a group means removing all its members."""
        found: dict[int, list[Member]] = {i: [] for i in range(self.size)}
        for name, dim, ids in self.each():
            where: dict[int, list[int]] = {}
            for i, identity in enumerate(ids.tolist()):
                if identity >= 0:
                    where.setdefault(identity, []).append(i)
            for identity, indices in where.items():
                found[identity].append(Member(name, dim, tuple(indices)))
        return found

    @cached_property
    def widths(self) -> tuple[Vectors, Vectors]:
        """The vectors that a selection can change, each once: those of dim 0 of tensors; of other dims, and counted."""
        rows = [ids for _, dim, ids in self.each() if dim == 0]
        others = [*(ids for _, dim, ids in self.each() if dim > 0), *(count.ids for count in self.counts)]
        distinct = ({id(ids): ids for ids in several}.values() for several in (rows, others))
        first, second = (Vectors(ids for ids in several if bool((ids >= 0).any())) for several in distinct)
        return first, second

    @property
    def frozen(self) -> list[Frozen]:
        """Every channel that stays whatever is asked, with the reasons."""
        found = []
        for name, dim, ids in self.each():
            for identity in ids[ids < 0].unique().tolist():
                indices = tuple((ids == identity).nonzero().flatten().tolist())
                found.append(Frozen(name, dim, indices, self.frozen_reasons[-1 - identity]))
        return found

    def each(self) -> Iterator[tuple[str, int, Tensor]]:
        """Iterates over (tensor name, dim, group ids)."""
        for name, dims in self.axes.items():
            for dim, ids in dims.items():
                yield name, dim, ids

    def scale_ids(self, norm: str) -> Tensor | None:
        """Group ids of a batch norm's channels, int64 [channels]; None where nothing can go: it has one channel."""
        return self.axes.get(f"{norm}.weight", {}).get(0)

    def norm_channels(self) -> tuple[int, int]:
        """Returns (all, frozen) channels of the batch norms with a scale factor."""
        ids = [self.scale_ids(name) for name in self.norms]
        known = [i for i in ids if i is not None]
        return sum(len(i) for i in known), sum(int((i < 0).sum()) for i in known)

    def told_frozen(self) -> str:
        """How many channels are frozen, in words: of batch norms, or of weights where there is no batch norm."""
        (total, frozen), what = self.norm_channels(), "BatchNorm channels"
        if not total:
            rows = [ids for name, dim, ids in self.each() if dim == 0 and len(self.shapes[name]) > 1]
            total, frozen = sum(map(len, rows)), sum(int((ids < 0).sum()) for ids in rows)
            what = "output channels of weights"
        return f"{frozen} of {total} {what} are frozen"

    def __str__(self) -> str:
        summary = (
            f"ChannelGraph: {self.size} removable channel groups; {self.told_frozen()}; "
            f"groups={self.options.groups!r}, attention={self.options.attention!r}"
        )
        notes = [f"approximation: {text}" for text in self.approximations]
        return "\n".join([summary, *notes, *_layer_table(self)])

    __repr__ = __str__


def _finish(
    cls: type[ChannelGraph], context: Context, tensors: dict[str, Value], traced: Traced, norms: tuple[str, ...],
    notes: tuple[str, ...],
) -> ChannelGraph:  # fmt: skip
    """Turns roots into small group ids and freezes what stands alone."""
    labels = context.labels
    own = [v for value in tensors.values() for v in value.axes.values()]
    nothing = torch.empty(0, dtype=torch.int64)
    # one index of one tensor, related to nothing: no operator that was understood touched it
    alone = (torch.bincount(labels.find(torch.cat([nothing, *own]))) == 1).nonzero().flatten()
    labels.freeze(alone[alone >= FROZEN_IDS], "no operator relates it to another tensor")
    vectors = {id(v): v for v in (*own, *context.vectors())}  # all at once, as there are thousands
    sizes = [len(v) for v in vectors.values()]
    roots = labels.find(torch.cat([nothing, *vectors.values()]))
    reasons = labels.reasons()
    frozen = torch.tensor(sorted(reasons), dtype=torch.int64)
    free = torch.zeros(labels.size, dtype=torch.bool)
    free[labels.find(torch.cat([nothing, *own]))] = True
    free[:FROZEN_IDS] = False
    ids = free.cumsum(0) - 1  # of a root: its position among the free ones, or -1 - that among the frozen ones
    ids[frozen] = -1 - torch.arange(len(frozen))
    equal: dict[bytes, Tensor] = {}  # one tensor for all equal ones
    parts = ids[roots].split(sizes)
    known = {key: equal.setdefault(part.numpy().tobytes(), part) for key, part in zip(vectors, parts, strict=True)}

    def of(vector: Tensor) -> Tensor:
        return known[id(vector)]

    entering: dict[str, list[Tensor]] = {}
    for path, vector in context.inputs:
        entering.setdefault(path, []).append(of(vector))
    return cls(
        axes={name: {d: of(v) for d, v in value.axes.items()} for name, value in tensors.items() if value.axes},
        shapes={name: value.shape for name, value in tensors.items()},
        size=int(free.sum()),
        frozen_reasons=[tuple(reasons[int(root)]) for root in frozen],
        counts=[replace(count, ids=of(count.ids)) for count in context.counts],
        equal_parts=[replace(place, parts=tuple(map(of, place.parts))) for place in context.equal_parts],
        norms=norms,
        inputs=entering,
        sums=[replace(place, ids=of(place.ids)) for place in context.sums],
        products=[replace(place, ids=tuple(map(of, place.ids))) for place in context.products],
        picks=[replace(pick, before=of(pick.before), after=of(pick.after)) for pick in context.picks],
        denominators=[replace(place, ids=of(place.ids)) for place in context.denominators],
        traced=traced,
        options=context.options,
        approximations=tuple(dict.fromkeys(context.approximations)),
        notes=notes,
    )


def _layer_table(graph: ChannelGraph) -> list[str]:
    """One row for each layer with a weight of 2 or more dims: its channels, and why some stay; at most 60 rows."""
    lines = 60
    rows = []
    for name, dims in graph.axes.items():
        ids = dims.get(0)
        if ids is None or len(graph.shapes[name]) < 2:
            continue
        free = ids[ids >= 0]
        reasons = sorted({r for i in ids[ids < 0].unique().tolist() for r in graph.frozen_reasons[-1 - i]})
        why = reasons[0] + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "") if reasons else ""
        rows.append((name, str(len(ids)), str(len(free)), str(len(free.unique())), why))
    shown = [_COLUMNS, *rows[:lines]]
    widths = [max(len(row[i]) for row in shown) for i in range(4)]
    table = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]]).rstrip()
        for row in shown
    ]
    return table + ([f"... and {len(rows) - lines} more layers"] if len(rows) > lines else [])
