"""TimmClassifier: a LightningModule around ``timm.create_model``. Convenient, and never required by the callbacks."""

from __future__ import annotations

import math
from typing import Any, Literal

import timm
import torch
from lightning.pytorch import LightningModule
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune.callbacks.checkpoint import CompactCheckpoint
from lightning_prune.callbacks.families.zeros import warn_if_zeros_are_free
from lightning_prune.functional.schedules import anneal, piecewise
from lightning_prune.support.near import did_you_mean
from lightning_prune.zoo import alexnet as _alexnet  # noqa: F401  registers it with timm
from lightning_prune.zoo import characters as _characters  # noqa: F401  registers it with timm
from lightning_prune.zoo import models as _models  # noqa: F401  registers the CIFAR networks with timm

Batch = tuple[Tensor, Tensor]


class TimmClassifier(CompactCheckpoint, LightningModule):
    """An image classifier with any timm backbone, picked by name.

    Checkpoints of a compact one load with a Trainer or without (`CompactCheckpoint`). Logs ``train/loss``,
    ``train/acc``, ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc``. A model of characters, which gives logits
    [N, num_classes, T] for labels [N, T], logs bits per character too, ``val/bits`` and ``test/bits``.

    Args:
        model_name: a name of ``timm.list_models()``, or ours: resnet20_cifar, resnet56_cifar, vgg16_bn_cifar, alexnet,
            character_transformer.
        num_classes: classes.
        in_chans: channels of the input images.
        pretrained: load timm's weights (from the network or the local cache).
        model_kwargs: other arguments of ``timm.create_model``, e.g. ``{"drop_path_rate": 0.1}``.
        optimizer: "sgd" or "adamw".
        lr: peak learning rate.
        weight_decay: for conv and linear weights; biases and norms have none unless ``decay_all``.
        momentum: of SGD.
        nesterov: whether SGD's momentum is Nesterov's.
        decay_all: weight decay on biases and norms too.
        schedule: "cosine" to ``lr_floor`` over the whole fit, "steps" as ``lr_steps`` says, or "constant".
        lr_steps: of schedule "steps": {epoch: the learning rate from its begin on}; before the first one it is ``lr``.
        lr_floor: where the cosine ends, as a share of ``lr``.
        warmup_steps: optimizer steps of linear learning-rate warm-up.
        label_smoothing: of the cross entropy, in [0, 1).
        scale_init: value of all BatchNorm scale factors at the start; None leaves them as timm makes or loads them.
        channels_last: memory format of weights and images; faster on most GPUs in mixed precision, and on a CPU: there
            a step of EfficientNet-B0, MixNet-S or MobileNetV3 takes 0.4 to 0.65 of the time, of a ResNet 0.8 to 0.95.

    Raises:
        ValueError: timm knows no such model, or ``lr_steps`` and ``schedule`` do not fit.
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
        nesterov: bool = True,
        decay_all: bool = False,
        schedule: Literal["cosine", "steps", "constant"] = "cosine",
        lr_steps: dict[int, float] | None = None,
        lr_floor: float = 0.01,
        warmup_steps: int = 0,
        label_smoothing: float = 0.0,
        scale_init: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not model_name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(model_name):
            hint = did_you_mean(model_name, timm.list_models()) or "See timm.list_models()."
            raise ValueError(f"model_name={model_name!r} is not a timm model. {hint}")
        if (schedule == "steps") != bool(lr_steps):
            raise ValueError(
                f"schedule={schedule!r} and lr_steps={lr_steps}: schedule 'steps' needs lr_steps, such as "
                "{60: 0.01, 120: 0.001}, and no other schedule takes them."
            )
        self.model = timm.create_model(
            model_name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **(model_kwargs or {})
        )
        # The command line hands the numbers of epochs on to the hyperparameters as text.
        self._lr_steps = {int(epoch): float(rate) for epoch, rate in (lr_steps or {}).items()}
        if scale_init is not None:
            _set_scales(self.model, scale_init)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        for stage in ("train", "val", "test"):
            setattr(self, f"{stage}_acc", MulticlassAccuracy(num_classes=num_classes, average="micro"))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of images [N, in_chans, H, W]."""
        if self.hparams["channels_last"]:
            x = x.contiguous(memory_format=torch.channels_last)
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
        if labels.ndim > 1 and stage != "train":
            self.log(f"{stage}/bits", loss / math.log(2), on_epoch=True, on_step=False, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        h = self.hparams
        decay = h["weight_decay"]
        groups = self.model.parameters() if h["decay_all"] else param_groups_weight_decay(self.model, decay)
        optimizer: torch.optim.Optimizer
        if h["optimizer"] == "sgd":
            nesterov = h["nesterov"] and h["momentum"] > 0
            optimizer = SGD(groups, lr=h["lr"], momentum=h["momentum"], nesterov=nesterov, weight_decay=decay)
        else:
            optimizer = AdamW(groups, lr=h["lr"], weight_decay=decay)
        scheduler = LambdaLR(optimizer, self._share_of_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _share_of_lr(self, step: int) -> float:
        """The learning rate of an optimizer step, as a share of ``lr``."""
        h = self.hparams
        warm: float = min(1.0, (step + 1) / (h["warmup_steps"] + 1))
        if h["schedule"] == "constant":
            return warm
        if h["schedule"] == "steps":
            # num_training_batches is known in training only, from the second step on
            epoch = 0.0
            if step:
                trainer = self.trainer
                epoch = step / math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            return warm * piecewise(epoch, h["lr"], self._lr_steps) / float(h["lr"])
        # Asked for in training only: asking here would make Lightning load the data before it restores the
        # loader's position from a checkpoint, and lose that.
        done = step / max(1, int(self.trainer.estimated_stepping_batches)) if step else 0.0
        return warm * anneal(done, 1.0, h["lr_floor"], "cosine")


def _set_scales(network: nn.Module, value: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.constant_(module.weight, value)
