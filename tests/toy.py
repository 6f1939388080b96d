"""A small network, data and modules that the callback tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_prune.zoo.data.loading import EpochSampler, ReplayLoader

CLASSES = 4


def network(seed: int = 0) -> nn.Sequential:
    """Two convs with BatchNorm and a linear head on 1x8x8 inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
        )  # fmt: skip


def samples(n: int = 64, seed: int = 0) -> TensorDataset:
    """Images whose class shows in the mean of one quadrant: learnable in a few epochs."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    x = 0.5 * torch.randn(n, 1, 8, 8, generator=generator)
    for i, c in enumerate(y.tolist()):
        x[i, 0, 4 * (c // 2) : 4 * (c // 2) + 4, 4 * (c % 2) : 4 * (c % 2) + 4] += 1.0
    return TensorDataset(x, y)


def loaders(batch_size: int = 8, n: int = 64) -> dict[str, DataLoader[Any]]:
    """Loaders whose training batches are a function of epoch and position: a resumed run sees them again."""
    return {
        "train_dataloaders": ReplayLoader(samples(n), batch_size=batch_size, sampler=EpochSampler(n, seed=0)),
        "val_dataloaders": DataLoader(samples(32, seed=1), 16),
    }


class Stream(IterableDataset[Any]):
    """The samples without a length, over and over."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from samples()


class Toy(lightning.LightningModule):
    """The network in a LightningModule, built where ``built`` says, trained by SGD or AdamW + OneCycle."""

    def __init__(self, built: str = "init", optimizer: str = "sgd", lr: float = 0.05) -> None:
        super().__init__()
        self.built, self.kind, self.lr = built, optimizer, lr
        if built == "init":
            self.net = network()

    def setup(self, stage: str) -> None:
        if self.built == "setup" and not hasattr(self, "net"):
            self.net = network()

    def configure_model(self) -> None:
        if self.built == "configure_model" and not hasattr(self, "net"):
            self.net = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), batch_size=len(y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), batch_size=len(y))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        if self.kind == "sgd":
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-3)
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr / 5, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr / 5, total_steps=400)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer(path: Any, callbacks: list[Any], make: Any = lightning.Trainer, **options: Any) -> Any:
    """A quiet CPU trainer; ``make``: its class, if it is that of the standalone package."""
    defaults: dict[str, Any] = {
        "max_epochs": 6, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(path),
    }  # fmt: skip
    return make(callbacks=callbacks, **(defaults | options))


def ours_left_on(module: nn.Module) -> list[str]:
    """Names of modules that still carry something of the package, but for the record of a compact one."""
    return [
        name
        for name, m in module.named_modules()
        if hasattr(type(m), "_lightning_prune_base")
        or any("prune" in k for k in m.__dict__ if not k.endswith("compact"))
    ]


def zeros(module: nn.Module) -> int:
    """Exact zeros in the conv and linear weights."""
    return sum(
        m.weight.numel() - int(torch.count_nonzero(m.weight))
        for m in module.modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    )
