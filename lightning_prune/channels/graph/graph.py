"""`ChannelGraph`: which channel indices of which tensors can only be removed together."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lightning_prune.channels.graph.propagate import label_graph, state_values
from lightning_prune.channels.graph.report import layer_table
from lightning_prune.channels.trace.call import Context, Value, values
from lightning_prune.channels.trace.export import export
from lightning_prune.channels.trace.labels import FROZEN_IDS, Labels
from lightning_prune.channels.trace.options import Options, check_options
from lightning_prune.channels.trace.sites import Count, Frozen, Member, Parts, Pick, Product, Sum


@dataclass(frozen=True, repr=False)
class ChannelGraph:
    """The channel groups of a model: what can only be removed together.

    Attributes:
        axes: {tensor name: {dim: group ids, int64 of shape (size of the dim,)}}. An id from 0 on is a group that may
            be removed; -1 - r is frozen for the reasons `frozen_reasons[r]`.
        shapes: {tensor name: shape}.
        size: the number of removable groups.
        counts, equal_parts: the places in the code that have to change with the channels.
        norms: names of the modules that are batch norms with scale factors.
        sums: the places where channels are summed over.
        products: what the number of multiplications depends on.
        picks: channels picked by constant numbers.
        inputs: {module path: group ids of the channels of each tensor that enters it}.
        program: the exported program that all this was read from.
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
    program: ExportedProgram
    options: Options
    approximations: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def trace(
        cls,
        model: nn.Module,
        example_input: Any,
        *,
        groups: str = "tie",
        attention: str = "dims",
        allow_inexact: Collection[str] = (),
    ) -> ChannelGraph:
        """Traces a model in eval mode with fake tensors: no real compute, and the model is not changed.

        Args:
            model: any module that `torch.export` can export.
            example_input: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
            groups: how an ordinary grouped convolution shrinks: "tie" (the same position in all groups) or "whole".
            attention: "dims" (the same dims of all heads) or "heads" (whole heads).
            allow_inexact: approximations to accept, from ("eca",).

        Raises:
            TraceError: the model cannot be exported with this input.
            ChannelError: an option has an unknown value.
        """
        options = check_options(groups, attention, allow_inexact)
        return cls.of_program(export(model, example_input), model, options)

    @classmethod
    def of_program(
        cls, program: ExportedProgram, model: nn.Module, options: Options, *, free_outputs: int = 0
    ) -> ChannelGraph:
        """Labels an exported program of `model`; its outputs freeze, but for the last few that may shrink."""
        context = Context(Labels(), options)
        placeholders, tensors = state_values(program, context)
        names = [node.name for node in program.graph.nodes if node.op == "placeholder"]
        out = label_graph(program.graph_module, [placeholders.get(name) for name in names], context)
        outputs = list(values([out]))
        for value in outputs[: len(outputs) - free_outputs]:
            for labels in value.axes.values():
                context.labels.freeze(labels, "the network's output")
        norms = tuple(
            name
            for name, m in model.named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and f"{name}.weight" in tensors
        )
        return _finish(cls, context, tensors, program, norms)

    @property
    def groups(self) -> dict[int, list[Member]]:
        """{group id: its members}. Removing a group means removing all its members."""
        if "groups" not in self._cache:
            found: dict[int, list[Member]] = {i: [] for i in range(self.size)}
            for name, dim, ids in self.each():
                where: dict[int, list[int]] = {}
                for i, identity in enumerate(ids.tolist()):
                    if identity >= 0:
                        where.setdefault(identity, []).append(i)
                for identity, indices in where.items():
                    found[identity].append(Member(name, dim, tuple(indices)))
            self._cache["groups"] = found
        groups: dict[int, list[Member]] = self._cache["groups"]
        return groups

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

    def __str__(self) -> str:
        total, frozen = self.norm_channels()
        summary = (
            f"ChannelGraph: {self.size} removable channel groups; "
            f"{frozen} of {total} BatchNorm channels are frozen; groups={self.options.groups!r}, "
            f"attention={self.options.attention!r}"
        )
        notes = [f"approximation: {text}" for text in self.approximations]
        return "\n".join([summary, *notes, *layer_table(self.axes, self.shapes, self.frozen_reasons)])

    __repr__ = __str__


def _finish(
    cls: type[ChannelGraph],
    context: Context,
    tensors: dict[str, Value],
    program: ExportedProgram,
    norms: tuple[str, ...],
) -> ChannelGraph:
    """Turns roots into small group ids and freezes what stands alone."""
    labels = context.labels
    axes = {(name, dim): vector for name, value in tensors.items() for dim, vector in value.axes.items()}
    vectors = [*axes.values(), *(count.ids for count in context.counts)]
    vectors += [part for place in context.equal_parts for part in place.parts]
    vectors += [labels for _, labels in context.inputs]
    vectors += [place.ids for place in context.sums]
    vectors += [vector for product in context.products for vector in product.ids]
    vectors += [vector for pick in context.picks for vector in (pick.before, pick.after)]
    flat = labels.find(torch.cat(vectors)) if vectors else torch.empty(0, dtype=torch.int64)
    owned = sum(len(v) for v in axes.values())
    roots, counts = flat[:owned].unique(return_counts=True)
    unrelated = (roots >= FROZEN_IDS) & (counts == 1)
    if bool(unrelated.any()):  # one index of one tensor, related to nothing: no operator that was understood touched it
        labels.freeze(roots[unrelated], "no operator relates it to another tensor")
        flat = labels.find(flat)
    free = flat[:owned][flat[:owned] >= FROZEN_IDS].unique()
    reasons = labels.reasons()
    frozen = torch.tensor(sorted(reasons), dtype=torch.int64)
    # -1 - position of the frozen root, or the position of the free root
    ids = torch.where(
        flat < FROZEN_IDS, -1 - torch.searchsorted(frozen, flat), torch.searchsorted(free, flat) if len(free) else 0
    )
    split = list(ids.split([len(v) for v in vectors]))
    table: dict[str, dict[int, Tensor]] = {}
    for (name, dim), vector in zip(axes, split[: len(axes)], strict=True):
        table.setdefault(name, {})[dim] = vector
    rest = iter(split[len(axes) :])
    found = [replace(count, ids=next(rest)) for count in context.counts]
    equal = [replace(place, parts=tuple(next(rest) for _ in place.parts)) for place in context.equal_parts]
    entering: dict[str, list[Tensor]] = {}
    for path, _ in context.inputs:
        entering.setdefault(path, []).append(next(rest))
    sums = [replace(place, ids=next(rest)) for place in context.sums]
    products = [replace(place, ids=tuple(next(rest) for _ in place.ids)) for place in context.products]
    picks = [replace(pick, before=next(rest), after=next(rest)) for pick in context.picks]
    texts = [tuple(reasons[int(root)]) for root in frozen]
    shapes = {name: value.shape for name, value in tensors.items()}
    return cls(table, shapes, len(free), texts, found, equal, norms, entering, sums, products, picks, program,
               context.options, tuple(context.approximations))  # fmt: skip
