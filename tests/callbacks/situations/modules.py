"""LightningModules that train the toy network ``net`` in ways of their own."""

from __future__ import annotations

from typing import Any

import timm.optim
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.nn import functional as F

from tests.toy import CLASSES, Toy, network


class Optimized(Toy):
    """Trained by an optimizer that is made by ``make(parameters)``, and a schedule by ``schedule(optimizer)``."""

    def __init__(self, make: Any, schedule: Any = None) -> None:
        super().__init__()
        self.make, self.schedule = make, schedule

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        return (
            optimizer if self.schedule is None else {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}
        )


def plateau(optimizer: Any) -> dict[str, Any]:
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return {"scheduler": schedule, "monitor": "val_loss"}


def one_cycle(optimizer: Any) -> dict[str, Any]:
    return {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=40), "interval": "step"}


class Manual(Toy):
    """Steps by hand in every batch."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizers: Any = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(x), y))
        for optimizer in optimizers:
            optimizer.step()


class MuonAndSGD(Manual):
    """PyTorch's Muon for the matrix, SGD for all else: two optimizers on one network."""

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.ndim == 2]
        rest = [p for p in self.parameters() if p.ndim != 2]
        return [torch.optim.Muon(matrices, lr=0.02), torch.optim.SGD(rest, lr=0.05, momentum=0.9)]


def timm_muon(parameters: Any) -> Any:
    return timm.optim.create_optimizer_v2([*parameters], "muon", lr=0.02)


class Guessed(Toy):
    """Trains on the first of several loaders' batches and sees the others."""

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        parts = [*batch.values()] if isinstance(batch, dict) else batch
        return torch.stack([F.cross_entropy(self(x), y) for x, y in parts]).mean()

    def forward(self, x: Any) -> torch.Tensor:
        while not torch.is_tensor(x):  # calibration hands on a batch of several loaders, or its first element
            x = next(iter(x.values())) if isinstance(x, dict) else x[0]
        return self.net(x)


class Taught(Toy):
    """Learns from a larger teacher that it holds, as well as from labels."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        self.teacher.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        x, y = batch
        logits = self(x)
        return F.cross_entropy(logits, y) + F.mse_loss(logits, self.teacher(x))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)


class Gan(Toy):
    """``net`` judges what a generator makes of noise, and the real images: two optimizers, in turns."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, 64), nn.Unflatten(1, (1, 8, 8)))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        judge, maker = self.optimizers()  # type: ignore[misc]
        noise = torch.randn(len(x), 8)
        self.toggle_optimizer(judge)
        judge.zero_grad()
        fake = self(self.generator(noise).detach())
        self.manual_backward(F.cross_entropy(self(x), y) + F.softplus(fake[:, 0]).mean())
        judge.step()
        self.untoggle_optimizer(judge)
        self.toggle_optimizer(maker)
        maker.zero_grad()
        self.manual_backward(F.softplus(-self(self.generator(noise))[:, 0]).mean())
        maker.step()
        self.untoggle_optimizer(maker)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net.parameters(), 0.05), torch.optim.SGD(self.generator.parameters(), 0.05)]


class Skips(Toy):
    """Every third step returns None."""

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx)


class Projects(Toy):
    """A contrastive head that reads the maps of the first layer and the features, in ``training_step`` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.maps = nn.Linear(16, 6), nn.Conv2d(8, 6, 1)

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        x, y = batch
        first = self.net[:3](x)
        features = self.net[3:8](first)
        one, two = self.features(features), self.maps(first).mean((2, 3))
        return F.cross_entropy(self.net[8](features), y) + F.mse_loss(F.normalize(one), F.normalize(two))


class Reads(Projects):
    """Its head reads the features alone, so that the channels of the first layer may go."""

    def __init__(self) -> None:
        super().__init__()
        del self.maps

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        x, y = batch
        features = self.net[:8](x)
        return F.cross_entropy(self.net[8](features), y) + F.cross_entropy(self.features(features)[:, :CLASSES], y)


class Frozen(Toy):
    """Its head does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.net[8].requires_grad_(False)


class Reused(Toy):
    """One convolution is called twice, and so is one norm."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Conv2d(16, 16, 1)
        norm = nn.BatchNorm2d(16)
        self.net = nn.Sequential(*network()[:6], shared, norm, nn.ReLU(), shared, norm, nn.ReLU(), *network()[6:])


class Shared(Toy):
    """Two linear layers hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        tied, other = nn.Linear(16, 16), nn.Linear(16, 16)
        other.weight = tied.weight
        self.net = nn.Sequential(*network()[:8], tied, nn.ReLU(), other, nn.ReLU(), nn.Linear(16, CLASSES))


class Diverges(Toy):
    """Its loss is NaN from the sparsify phase on."""

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        loss: Any = super().training_step(batch, batch_idx)
        return loss * torch.nan if self.global_step >= 6 else loss


class Scored(Toy):
    """Logs a metric that is best at the start."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("score", 100.0 - self.trainer.global_step)
