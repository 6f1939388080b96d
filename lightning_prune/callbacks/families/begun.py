"""What is decided when channels begin to be scored, and holds from there on, in a resumed run too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_prune.callbacks.families.readers import Readers, may_be_read
from lightning_prune.callbacks.families.shapes import ShapePruning
from lightning_prune.callbacks.method import PruningMethod
from lightning_prune.channels.graph.graph import ChannelGraph


@dataclass(frozen=True)
class Begun:
    """Of one fit.

    Attributes:
        network: path of the network in the LightningModule.
        left: names of its parameters with channels that did not train.
        read: {name of its parameter: who reads its output channels outside of forward}.
    """

    network: str
    left: list[str]
    read: dict[str, str]

    @classmethod
    def now(
        cls,
        module: nn.Module,
        network: nn.Module,
        graph: ChannelGraph,
        trains: Callable[[Tensor], bool],
        readers: Readers,
    ) -> Begun:
        """As the phase begins.

        Args:
            module: the LightningModule.
            network: a part of it, which the graph was traced from.
            graph: its channel graph.
            trains: whether a parameter does.
            readers: what losses have shown so far.
        """
        path = next(name for name, part in module.named_modules() if part is network)
        named = network.named_parameters(remove_duplicate=False)
        left = [name for name, p in named if 0 in graph.axes.get(name, {}) and not trains(p)]
        return cls(path, left, readers.of(module, network, graph))

    def parameters(self, network: nn.Module) -> dict[str, Tensor]:
        """Those that did not train, by name."""
        named = dict(network.named_parameters(remove_duplicate=False))
        return {name: named[name] for name in self.left if name in named}

    def reasons(self) -> dict[str, str]:
        """{name of a parameter whose channels stay for what reads them: why}."""
        return {name: f"read by {reader} outside of forward" for name, reader in self.read.items()}


class PhaseOfOneNetwork(ShapePruning):
    """The part of `ChannelPruning` that looks beyond the network's `forward`: who else reads it, whose steps count."""

    def reset(self) -> None:
        super().reset()
        self._readers = Readers()
        self._begun: Begun | None = None

    def ready(self, pl_module: LightningModule) -> bool:
        assert self.phases is not None
        # Who else reads the network shows in the first loss; a training of one batch cannot wait for it.
        return self.seen > 0 or self.stage != "dense" or self.phases.total <= 1 or not may_be_read(pl_module, self.root)

    def before_backward(self, pl_module: LightningModule, loss: Tensor) -> None:
        if self.stage == "dense":
            self._readers.see(pl_module, loss)

    def watched(self) -> Sequence[nn.Parameter]:
        """Those of the network, if the method learns at Lightning's hooks; scores and penalties do without them."""
        learns = any(getattr(type(self), n) is not getattr(PruningMethod, n) for n in ("gates", "before_step"))
        return [*self.root.parameters()] if learns and self.stage != "pruned" else []

    def state(self) -> dict[str, Any]:
        if self.stage == "dense":
            return {"meets": dict(self._readers.meets)}
        return {"begun": asdict(self._begun)} if self.stage == "soft" and self._begun is not None else {}

    def restore(self, pl_module: LightningModule, state: Mapping[str, Any]) -> None:
        self._readers.meets = dict(state.get("meets", {}))
        if "begun" in state:
            self._begun = Begun(**state["begun"])
