"""AlexNet as torchvision has it, registered in timm's registry, which lacks it.

Krizhevsky 2014 (arXiv 1404.5997): five convolutions, three linear layers, no normalisation. Names and shapes are
torchvision's, so that ``pretrained=True`` reads its weights. Importing this module is enough for
``timm.create_model("alexnet")``; images have at least 63x63 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models import register_model as _register_model
from torch import Tensor, nn

_Entry = TypeVar("_Entry", bound=Callable[..., nn.Module])
register_model: Callable[[_Entry], _Entry] = _register_model  # timm is untyped; the decorator returns what it gets


class AlexNet(nn.Module):
    """Five convolutions and three linear layers with ReLU and dropout.

    Args:
        num_classes: outputs of the last layer; 0 returns what enters it.
        in_chans: channels of the input.
        drop_rate: dropout before the two hidden linear layers, in [0, 1).
        hidden: units of each of the two hidden linear layers.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5, hidden: int = 4096) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features, self.head_hidden_size = 256, hidden
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 64, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(drop_rate), nn.Linear(256 * 6 * 6, hidden), nn.ReLU(inplace=True),
            nn.Dropout(drop_rate), nn.Linear(hidden, hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes) if num_classes else nn.Identity(),
        )  # fmt: skip

    def get_classifier(self) -> nn.Module:
        """Returns the last linear layer (``nn.Identity`` when ``num_classes`` is 0)."""
        return self.classifier[6]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the last layer by a fresh one with ``num_classes`` outputs (0 removes it)."""
        self.num_classes = num_classes
        self.classifier[6] = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images ``(N, in_chans, H, W)`` to feature maps ``(N, 256, h, w)``."""
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools ``(N, 256, h, w)`` to 6x6 and classifies; ``pre_logits`` stops before the last layer."""
        x = self.avgpool(x).flatten(1)
        return self.classifier[:6](x) if pre_logits else self.classifier(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(N, in_chans, H, W)``, H and W >= 63, to logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs({
    "alexnet.tv_in1k": {
        "url": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (6, 6),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "features.0",
        "classifier": "classifier.6",
        "license": "bsd-3-clause",
    }
})  # fmt: skip


@register_model
def alexnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AlexNet for ImageNet; the keyword arguments are those of `AlexNet`."""
    kwargs.pop("global_pool", None)  # create_model passes it on where it is given; the pooling is part of the layout
    model: nn.Module = build_model_with_cfg(AlexNet, "alexnet", pretrained, **kwargs)
    return model
