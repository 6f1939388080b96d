"""TimmClassifier: a LightningModule around ``timm.create_model``. Convenient, and never required by the callbacks."""

from __future__ import annotations

from typing import Any, Literal

import timm
import torch
from lightning.pytorch import LightningModule
from timm.optim import param_groups_weight_decay
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune.callbacks.checkpoint import CompactCheckpoint
from lightning_prune.callbacks.families.zeros import warn_if_zeros_are_free
from lightning_prune.functional.schedules import anneal
from lightning_prune.support.near import did_you_mean
from lightning_prune.zoo import models as _models  # noqa: F401  registers the CIFAR networks with timm

Batch = tuple[Tensor, Tensor]


class TimmClassifier(CompactCheckpoint, LightningModule):
    """An image classifier with any timm backbone, picked by name.

    Checkpoints of a compact one load with a Trainer or without (`CompactCheckpoint`). Logs ``train/loss``,
    ``train/acc``, ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc``.

    Args:
        model_name: a name of ``timm.list_models()``, or ours: resnet20_cifar, resnet56_cifar, vgg16_bn_cifar.
        num_classes: classes.
        in_chans: channels of the input images.
        pretrained: load timm's weights (from the network or the local cache).
        model_kwargs: other arguments of ``timm.create_model``, e.g. ``{"drop_path_rate": 0.1}``.
        optimizer: "sgd" (Nesterov momentum) or "adamw".
        lr: peak learning rate.
        weight_decay: for conv and linear weights; biases and norms have none.
        momentum: of SGD.
        schedule: "cosine" to a hundredth of ``lr`` over the whole fit, or "constant".
        warmup_steps: optimizer steps of linear learning-rate warm-up.
        label_smoothing: of the cross entropy, in [0, 1).

    Raises:
        ValueError: timm knows no such model.
    """

    def __init__(
        self,
        model_name: str = "resnet18",
        num_classes: int = 10,
        in_chans: int = 1,
        pretrained: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        momentum: float = 0.9,
        schedule: Literal["cosine", "constant"] = "cosine",
        warmup_steps: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not model_name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(model_name):
            hint = did_you_mean(model_name, timm.list_models()) or "See timm.list_models()."
            raise ValueError(f"model_name={model_name!r} is not a timm model. {hint}")
        self.model = timm.create_model(
            model_name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **(model_kwargs or {})
        )
        for stage in ("train", "val", "test"):
            setattr(self, f"{stage}_acc", MulticlassAccuracy(num_classes=num_classes, average="micro"))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of images [N, in_chans, H, W]."""
        return self.model(x)  # type: ignore[no-any-return]

    def on_fit_start(self) -> None:
        """Warns if the network is sparse and nothing holds its zeros."""
        warn_if_zeros_are_free(self.trainer, self.model)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Class probabilities [N, num_classes] of images, or of (images, labels)."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).softmax(1)  # type: ignore[no-any-return]

    def _step(self, batch: Batch, stage: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        smoothing = self.hparams["label_smoothing"] if stage == "train" else 0.0
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        metric = getattr(self, f"{stage}_acc")
        metric(logits, labels)
        self.log(f"{stage}/loss", loss, on_epoch=True, on_step=stage == "train", prog_bar=stage == "train")
        self.log(f"{stage}/acc", metric, on_epoch=True, on_step=False, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        h = self.hparams
        groups = param_groups_weight_decay(self.model, h["weight_decay"])
        optimizer: torch.optim.Optimizer
        if h["optimizer"] == "sgd":
            optimizer = SGD(groups, lr=h["lr"], momentum=h["momentum"], nesterov=h["momentum"] > 0)
        else:
            optimizer = AdamW(groups, lr=h["lr"])

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (h["warmup_steps"] + 1))
            if h["schedule"] == "constant" or step == 0:
                return float(warm)
            # Asked for in training only: asking here would make Lightning load the data before it restores the
            # loader's position from a checkpoint, and lose that.
            total = max(1, int(self.trainer.estimated_stepping_batches))
            return float(warm * anneal(step / total, 1.0, 0.01, "cosine"))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
