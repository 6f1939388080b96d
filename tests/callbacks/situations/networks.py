"""What is trained: shared, reused, frozen and compiled layers, other networks beside it, steps that are none."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.callbacks.situations import modules
from tests.callbacks.situations.cell import Cell, Situation
from tests.callbacks.situations.optimizing import BY_HAND
from tests.callbacks.test_who_trains import WithTeacher
from tests.toy import Toy


def compiled(inplace: bool) -> Toy:
    module = Toy()
    if inplace:
        module.net.compile(backend="eager")
    else:
        module.net = torch.compile(module.net, backend="eager")
    return module


def compiled_before(cell: Cell) -> None:
    """The whole LightningModule is compiled, and that is fitted."""
    module: Any = torch.compile(cell.module, backend="eager")
    cell.trainer().fit(module, **cell.situation.data())


class Twice(nn.Module):
    """Computes its maps again in the backward pass."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.maps, self.rest = layers[:6], layers[6:]

    def forward(self, x: torch.Tensor) -> Any:
        return self.rest(checkpoint(self.maps, x, use_reentrant=False))


class Checkpointed(Toy):
    """Holds such a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Twice(self.net)


SITUATIONS: dict[str, Situation] = {
    "compiled before the fit": Situation(drive=compiled_before, slow=True),
    "compiled inside": Situation(lambda: compiled(False), slow=True),
    "compiled inside, in place": Situation(lambda: compiled(True), slow=True),
    "built in setup": Situation(lambda: Toy("setup")),
    "built in configure_model": Situation(lambda: Toy("configure_model")),
    "activation checkpointing": Situation(Checkpointed),
    "shared weights": Situation(modules.Shared),
    "reused layers": Situation(modules.Reused),
    "a frozen layer": Situation(modules.Frozen),
    # Parameters of a network count whether they train or not, and only a name tells which part is meant.
    "a teacher in the module": Situation(modules.Taught, refused={"flop": "fewest components alone take"}),
    "a teacher of the same architecture": Situation(WithTeacher),
    "a GAN": Situation(modules.Gan, network="net", refused=BY_HAND),
    "a head that training_step alone calls": Situation(modules.Reads, options={"weights": {"include": ["net.*"]}}),
    "a head beside the network named, no warm-up": Situation(
        modules.Reads, network="net", options={"all": {"warmup": 0}}
    ),
    "heads that read all channels": Situation(
        modules.Projects,
        network="net",
        refused={"flop": "", "channels": r"read by features.weight outside of forward"},
        shown="loss",
    ),
    "steps that return None": Situation(modules.Skips),
    # The search of Pruning from Scratch trains no weights: they are lost after it, and nobody looks at them again.
    "a loss that is NaN": Situation(
        modules.Diverges, told={"from scratch": "", "all": r"DivergenceError: The training has diverged"}
    ),
}
