"""The channel graph that is traced on the first batch, so that what cannot be pruned is refused before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.support.modes import Arguments
from lightning_prune.support.tensors import state_tensors

_VALUES = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Foreseen:
    """A graph, and what it depends on.

    Attributes:
        graph: of the network.
        network: that it was traced from.
        marks: what that looked like.
    """

    graph: ChannelGraph
    network: nn.Module
    marks: tuple[Any, ...]

    @classmethod
    def of(cls, network: nn.Module, example: Arguments, options: Mapping[str, Any]) -> Foreseen:
        """Traces it; the options are those of `ChannelGraph.trace`."""
        return cls(ChannelGraph.trace(network, example, **options), network, _marks(network, example))

    def stands(self, network: nn.Module, example: Arguments) -> bool:
        """Whether the graph is that of a network as it is now, run on an example."""
        return network is self.network and self.marks == _marks(network, example)


def _marks(network: nn.Module, example: Arguments) -> tuple[Any, ...]:
    """What code may branch on: modules, their plain attributes, their tensors, and the input's shapes."""
    modules = [(path, type(m), _attributes(m)) for path, m in network.named_modules(remove_duplicate=False)]
    tensors = [(name, id(t), _mark(t)) for name, t in state_tensors(network).items()]
    return modules, tensors, [_mark(leaf) for leaf in pytree.tree_leaves(example)]


def _attributes(module: nn.Module) -> dict[str, Any]:
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return {name: _mark(value) for name, value in own.items()}


def _mark(value: Any) -> Any:
    """What is left of a value if it is neither to be held nor compared: a tensor's kind, a plain value, an identity."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device, value.requires_grad
    if isinstance(value, tuple):
        return tuple(map(_mark, value))
    return value if isinstance(value, _VALUES) else id(value)
