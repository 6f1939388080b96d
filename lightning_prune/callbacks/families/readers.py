"""Who reads a network's activations beside its `forward`: heads that ``training_step`` alone calls.

A graph of `forward` does not know of them, and removing the channels that they read would break the next step. The
losses tell: from a parameter that the graph does not know, autograd leads to the layers whose outputs it meets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.support.network import holders

# Of these, an output channel is a sum over input channels: what is read of it are the rows of its weight.
_MIXING = ("Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Addmv", "Mv", "Linear", "MkldnnConvolution")
_LOSSES = 32  # that are looked at, while there are parameters that none had to do with


class Readers:
    """What meets which layers' outputs, as the losses of a fit have shown.

    Attributes:
        meets: {parameter: parameters of the layers, convolutions, norms or any, whose output channels it meets}, by
            their names in the LightningModule.
    """

    def __init__(self) -> None:
        self.meets: dict[str, list[str]] = {}
        self._looked, self._training = 0, set[str]()

    def see(self, module: nn.Module, loss: Tensor) -> bool:
        """Follow a loss back to the parameters of a LightningModule. Returns whether it shows anything new.

        Nothing is done once each parameter that trains has been met, or after a number of losses.
        """
        names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
        if not self._training >= set(names.values()):  # more trains than before: a layer was thawed
            self._looked, self._training = 0, set(names.values())
        if self._looked >= _LOSSES or self.meets.keys() >= set(names.values()):
            return False
        self._looked += 1
        before = dict(self.meets)
        for reader, read in _meetings(loss, names):
            self.meets[reader] = sorted({*self.meets.get(reader, ()), *read})
        return self.meets != before

    def of(self, module: nn.Module, network: nn.Module, graph: ChannelGraph) -> dict[str, str]:
        """{parameter of a network: who reads its output channels beside `forward`}.

        Args:
            module: holds the network.
            network: whose names count.
            graph: of the network.
        """
        programs = [p for p in (graph.traced.program, graph.traced.training) if p is not None]
        unknown = set[str].intersection(*(set(program.unused()) for program in programs))
        all_names = {id(p): name for name, p in module.named_parameters()}
        own = {all_names[id(p)]: name for name, p in network.named_parameters() if id(p) in all_names}
        return {
            own[name]: reader
            for reader, read in sorted(self.meets.items())
            if reader not in own or own[reader] in unknown
            for name in read
            if name in own and own[name] not in unknown
        }


def may_be_read(module: nn.Module, network: nn.Module) -> bool:
    """Whether anything that trains in a LightningModule may stand beside the graph of its network."""
    own = {id(p) for p in network.parameters()}
    if any(p.requires_grad and id(p) not in own for p in module.parameters()):
        return True
    return network is module and len([*holders(module)]) == 1 and len([*module.children()]) > 1


def _meetings(loss: Tensor, names: Mapping[int, str]) -> Iterator[tuple[str, set[str]]]:
    """(a parameter, those whose rows make what it meets) in the graph of a loss."""
    order = _nodes(loss.grad_fn)
    made_of = dict[Any, "set[str] | None"]()  # the parameters that a node is computed from, None if not from them alone
    for node in order:
        made_of[node] = _leaves(node, names, made_of)
    everything = set(names.values())
    for node in order:
        if made_of[node] is not None:
            continue
        children = [child for child, _ in node.next_functions if child is not None]
        readers = {name for child in children for name in made_of[child] or ()}
        if readers:
            read = {name for child in children if made_of[child] is None for name in _rows(child, made_of, everything)}
            for reader in readers:
                yield reader, read


def _nodes(root: Any) -> list[Any]:
    """All nodes below one, each after those that it is computed from."""
    order, seen, stack = [], set[Any](), [(root, False)] if root is not None else []
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None]
    return order


def _leaves(node: Any, names: Mapping[int, str], made_of: Mapping[Any, set[str] | None]) -> set[str] | None:
    if hasattr(node, "variable"):
        return {names[id(node.variable)]} if id(node.variable) in names else None
    above = node.next_functions
    if above[:1] == ((None, 0),) or (node.name().startswith(_MIXING) and (None, 0) in above):
        return None  # of data, or of what is made of data and does not train: they have no node
    parts = [made_of[child] for child, _ in node.next_functions if child is not None]
    return None if not parts or None in parts else set().union(*(part for part in parts if part is not None))


def _rows(node: Any, made_of: Mapping[Any, set[str] | None], everything: Collection[str]) -> set[str]:
    """The parameters whose first dim has the channels of an activation."""
    found, seen, stack = set[str](), {node}, [node]
    while stack:
        node = stack.pop()
        children = [child for child, _ in node.next_functions if child is not None]
        weights = {name for child in children for name in made_of[child] or ()}
        if node.name().startswith("CompiledFunction") and 2 * len(weights) >= len(everything):
            continue  # a whole network: what leaves it is its output
        found |= weights
        # One whose weight is frozen has no node for it: its channels stay for that, or it is met anew when it thaws.
        mixes = node.name().startswith(_MIXING) and (weights or (None, 0) in node.next_functions)
        fresh = [c for c in children if made_of[c] is None and c not in seen] if not mixes else []
        seen.update(fresh)
        stack += fresh
    return found
