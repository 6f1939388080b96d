"""Training steps by other names and with other arguments."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch.nn import functional as F

from tests.callbacks.situations.cell import Situation
from tests.toy import Toy


class Renamed(Toy):
    """The step is a method of another name that takes the batch alone, put in its place on the instance."""

    def __init__(self) -> None:
        super().__init__()
        self.training_step = self.train_step  # type: ignore[method-assign]

    def train_step(self, data: Any) -> STEP_OUTPUT:
        return {"loss": F.cross_entropy(self(data[0]), data[1])}


class Iterates(Toy):
    """The step takes the iterator over the data, and its batches from that."""

    def training_step(self, dataloader_iter: Any) -> STEP_OUTPUT:  # type: ignore[override]
        batch, index, _ = next(dataloader_iter)
        return super().training_step(batch, index)


SITUATIONS: dict[str, Situation] = {
    "a step of another name on the instance": Situation(Renamed),
    "a step that takes the iterator": Situation(Iterates, refused={"anp-vs": "Iterates takes dataloader_iter"}),
}
