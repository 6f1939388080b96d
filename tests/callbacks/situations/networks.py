"""What is trained: shared, reused, frozen and compiled layers, other networks beside it, steps that are none."""

from __future__ import annotations

from typing import Any

import torch
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


class Checkpointed(Toy):
    """Computes its maps again in the backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[6:](checkpoint(self.net[:6], x, use_reentrant=False))


SITUATIONS: dict[str, Situation] = {
    "compiled before the fit": Situation(drive=compiled_before),
    "compiled inside": Situation(lambda: compiled(False)),
    "compiled inside, in place": Situation(lambda: compiled(True)),
    "built in setup": Situation(lambda: Toy("setup")),
    "built in configure_model": Situation(lambda: Toy("configure_model")),
    "activation checkpointing": Situation(Checkpointed),
    "shared weights": Situation(modules.Shared),
    "reused layers": Situation(modules.Reused),
    "a frozen layer": Situation(modules.Frozen),
    "a teacher in the module": Situation(modules.Taught),
    "a teacher of the same architecture": Situation(WithTeacher),
    "a GAN": Situation(modules.Gan, network="net", refused=BY_HAND),
    "heads that training_step alone calls": Situation(modules.Reads, network="net"),
    "steps that return None": Situation(modules.Skips),
    "a loss that is NaN": Situation(modules.Diverges, told={"all": r"DivergenceError: The training has diverged"}),
}
