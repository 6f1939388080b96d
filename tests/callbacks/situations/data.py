"""Where batches come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from tests.callbacks.situations import modules
from tests.callbacks.situations.cell import Situation
from tests.toy import Stream, loaders, samples

VAL = {"val_dataloaders": loaders()["val_dataloaders"]}


class Known(IterableDataset[Any]):
    """The samples, with a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(samples(32))

    def __len__(self) -> int:
        return 32


class Module(lightning.LightningDataModule):
    """The same loaders from a data module."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loaders(n=32)["train_dataloaders"]

    def val_dataloader(self) -> DataLoader[Any]:
        return loaders()["val_dataloaders"]


def two(container: Any) -> Situation:
    """Two loaders of different length."""

    def data() -> dict[str, Any]:
        one, other = loaders(n=32)["train_dataloaders"], loaders(n=16)["train_dataloaders"]
        return {"train_dataloaders": container(one, other)}

    # Nobody can tell which labels are those of the outputs: methods with losses of their own want to be told.
    unknown = dict.fromkeys(["tas", "taylor"], r"no loss is known .* labels of NoneType")
    unknown["anp-vs"] = r"an attack moves the first element of a batch"
    return Situation(modules.Guessed, data=data, refused=unknown)


SITUATIONS: dict[str, Situation] = {
    "a dict of loaders": two(lambda a, b: {"a": a, "b": b}),
    "a list of loaders": two(lambda a, b: [a, b]),
    "a CombinedLoader": two(lambda a, b: CombinedLoader({"a": a, "b": b}, "max_size_cycle")),
    "iterable data with a length": Situation(data=lambda: {"train_dataloaders": DataLoader(Known(), 8)} | VAL),
    "iterable data without a length": Situation(
        data=lambda: {"train_dataloaders": DataLoader(Stream(), 8)} | VAL,
        trainer=lambda: {"max_epochs": -1, "max_steps": 16, "val_check_interval": 4},
        options={"all": {"warmup": 0.2, "sparsify": 0.5}},
    ),
    "iterable data without a length, epochs alone": Situation(
        data=lambda: {"train_dataloaders": DataLoader(Stream(), 8)} | VAL,
        trainer=lambda: {"val_check_interval": 4},
        refused={"all": r"PhaseError: The training has no known length .* Set max_steps"},
    ),
    "a data module": Situation(data=lambda: {"datamodule": Module()}),
}
