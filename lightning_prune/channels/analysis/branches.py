"""Which branches may be removed: layers that may lose all channels, as another path carries the network on.

A layer of dead channels on the only path keeps a channel. In a residual branch, a concatenation or a gate it need not:
what reads it becomes constant, and what it read is of no use any more.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_prune.channels.analysis.reachability import Flow, Flows
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.surgery.empty import may_be_empty
from lightning_prune.channels.surgery.rewrite import is_rewritten
from lightning_prune.channels.verify.find_form import Check

ONLY_PATH = "no other path leads from the network's input to its output"


@dataclass(frozen=True)
class RemovedBranches:
    """The branches that are removed.

    Attributes:
        empty: bool of shape (groups,): the channel groups of the layers that lose all channels.
        refused: {tensor: why it keeps a channel though all of them were to go}.
        floored: bool of shape (groups,): the groups of those that the graph would let go, but not the check.
    """

    empty: Tensor
    refused: dict[str, str]
    floored: Tensor

    @classmethod
    def none(cls, size: int) -> RemovedBranches:
        """No branch is removed, of so many channel groups."""
        return cls(torch.zeros(size, dtype=torch.bool), {}, torch.zeros(size, dtype=torch.bool))


class Branches:
    """The branches of one model, looked at again and again."""

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self.graph, self.model, self.flows = graph, model, Flows(graph)
        self._vectors: dict[bytes, tuple[Tensor, list[str]]] = {}
        self._layers: set[bytes] = set()
        for name, dim, ids in graph.each():
            if bool((ids >= 0).all()):
                key = ids.numpy().tobytes()
                self._vectors.setdefault(key, (ids, []))[1].append(name)
                if dim == 0:
                    self._layers.add(key)

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, form: str) -> Branches | None:
        """None where a rewritten graph runs the model, or shall: its code counts channels in ways that need some."""
        rewritten = form == "graph" or is_rewritten(model)
        return None if rewritten else cls(model, graph)

    def silent(self) -> frozenset[str]:
        """The BatchNorms whose scale factors are all exactly zero."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        weights = {path: parameters.get(f"{path}.weight") for path in self.graph.norms}
        return frozenset(path for path, w in weights.items() if w is not None and len(w) and not bool(w.any()))

    def unused(self, silent: Collection[str]) -> Tensor:
        """Groups that only feed norms without a scale factor: bool of shape (groups,)."""
        nothing = torch.zeros(self.graph.size, dtype=torch.bool)
        if not silent:
            return nothing
        flow = self.flows.without(nothing, silent)
        # A network of one path that is cut is broken, not finished.
        return self.flows.unread(flow) if flow.connected else nothing

    def removable(
        self, gone: Tensor, *, stay: Tensor | None = None, constants: bool = False, silent: Collection[str] = (),
        check: Check = lambda empty: "",
    ) -> RemovedBranches:  # fmt: skip
        """The layers all of whose channels are to go, where the network can do without, and what goes with them.

        Args:
            gone: the groups that are to go, bool of shape (groups,).
            stay: the groups that may not go, bool of shape (groups,).
            constants: whether layers go too that would be constant. (What would be of no use goes in any case.)
            silent: norms that give the same for any input.
            check: asked before any of it is settled.
        """
        stay = torch.zeros_like(gone) if stay is None else stay
        gone = gone & ~stay
        nothing = torch.zeros_like(gone)
        layers = [(ids, owners) for key, (ids, owners) in self._vectors.items() if key in self._layers]
        seeds = [(ids, self._name(owners)) for ids, owners in layers if bool(gone[ids].all())]
        if not seeds:
            return RemovedBranches.none(self.graph.size)
        if not self.flows.without(nothing, silent).connected:
            silent = ()  # the only path is cut: then everything would be of no use
        before = self.flows.constant(self.flows.without(nothing))

        def close(empty: Tensor) -> Tensor:
            """With what becomes constant or unused by it, whole layers at a time."""
            while True:
                flow = self.flows.without(empty, silent)
                more = empty | gone | self.flows.unread(flow)
                if constants:
                    more |= self.flows.constant(flow) & ~before
                more &= ~stay
                larger = empty.clone()
                for ids, _ in self._vectors.values():
                    # A layer that was to go anyway is a seed of its own.
                    if bool(more[ids].all()) and not bool(gone[ids].all()):
                        larger[ids] = True
                if bool((larger == empty).all()):
                    return empty
                empty = larger

        together = nothing.clone()
        together[torch.cat([ids for ids, _ in seeds])] = True
        together = close(together)
        if not (self._forbids(self.flows.without(together)) or check(together)):
            return RemovedBranches(together, {}, nothing)
        empty, floored, refused = nothing, nothing.clone(), dict[str, str]()
        for ids, name in seeds:  # one by one: an earlier one may be what leaves no path around a later one
            more = empty.clone()
            more[ids] = True
            more = close(more)
            if bool((more == empty).all()):
                continue
            if why := self._forbids(self.flows.without(more)):
                refused[name] = why
            elif why := check(more):
                refused[name] = why
                floored[ids] = True
            else:
                empty = more
        return RemovedBranches(empty, refused, floored)

    def _forbids(self, flow: Flow) -> str:
        """Why those groups may not all go; "" if they may."""
        if bool((flow.empty & self.flows.closed).any()):
            return "an operator reads its channels that cannot do without"
        if not flow.connected:
            return ONLY_PATH
        for ids, owners in self._vectors.values():
            for name in owners if bool(flow.empty[ids].all()) else ():
                path = name.rpartition(".")[0]
                module = self.model.get_submodule(path)
                if not may_be_empty(module):
                    return f"{path or 'the model'} ({type(module).__name__}) cannot run without channels"
        return ""

    def _name(self, owners: list[str]) -> str:
        """How a layer is named to people: by its norm, if it has one."""
        return next((name for name in owners if name.removesuffix(".weight") in self.graph.norms), owners[0])
