"""What is decided when channels begin to be scored, and holds from there on, in a resumed run too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_prune.callbacks import calibrate
from lightning_prune.callbacks.families.foreseen import Foreseen
from lightning_prune.callbacks.families.readers import Readers, may_be_read
from lightning_prune.callbacks.families.shapes import ShapePruning
from lightning_prune.callbacks.method import PruningMethod
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.support.modes import Arguments
from lightning_prune.support.network import find_network


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
        return reasons(self.read)


def reasons(read: Mapping[str, str]) -> dict[str, str]:
    """{name of a parameter: why its output channels stay}, from who reads them."""
    return {name: f"read by {reader} outside of forward" for name, reader in read.items()}


class PhaseOfOneNetwork(ShapePruning):
    """The part of `ChannelPruning` that looks beyond the network's `forward`: who else reads it, whose steps count."""

    surgery: dict[str, Any]

    def reset(self) -> None:
        super().reset()
        self._readers = Readers()
        self._begun: Begun | None = None
        self._foreseen: Foreseen | None = None

    def rehearse(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        self.root = network = find_network(pl_module, self.network_name, self.averages.parameters())
        example = calibrate.network_input(trainer, pl_module, network, batch, self.calibration_forward)
        self._foreseen = self.traced(network, example)
        self._foresee(pl_module)

    def traced(self, network: nn.Module, example: Arguments) -> Foreseen:
        """The network's channel graph: the one that is there, if nothing has changed that it depends on."""
        if self._foreseen is not None and self._foreseen.stands(network, example):
            return self._foreseen
        return Foreseen.of(network, example, {k: v for k, v in self.surgery.items() if k != "form"})

    def check_some_may_go(self, graph: ChannelGraph, stay: Mapping[str, str]) -> None:
        """Raise ChannelError if no channel may be removed, or not as many as is asked, even if every layer trained.

        Args:
            graph: of the network.
            stay: {name of a tensor: why the channels of its dim 0 stay}.
        """
        raise NotImplementedError

    def _foresee(self, pl_module: LightningModule) -> None:
        """Refuse what can be known to remove nothing: as if all layers trained, and no one read them but who has."""
        if self._foreseen is not None:
            read = self._readers.of(pl_module, self.root, self._foreseen.graph)
            self.check_some_may_go(self._foreseen.graph, reasons(read))

    def ready(self, pl_module: LightningModule) -> bool:
        assert self.phases is not None
        # Who else reads the network shows in the first loss; a training of one batch cannot wait for it.
        return self.seen > 0 or self.stage != "dense" or self.phases.total <= 1 or not may_be_read(pl_module, self.root)

    def before_backward(self, pl_module: LightningModule, loss: Tensor) -> None:
        if self.stage == "dense" and self._readers.see(pl_module, loss):
            self._foresee(pl_module)

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
