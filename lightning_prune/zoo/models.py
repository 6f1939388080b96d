"""ResNet-20, ResNet-56 and VGG-16-BN in their 32x32 (CIFAR) layouts, registered in timm's registry.

Importing this module is enough: ``timm.create_model("resnet20_cifar", num_classes=10, in_chans=1, width=12)``.
The networks take any ``in_chans``, ``num_classes`` (0 returns pooled features), ``drop_rate`` (dropout before the
classifier), ``global_pool``, ``width`` (channels of the first stage) and any input of at least 8x8 pixels.
There are no pretrained weights.

Layouts:
    ResNet: He et al. 2015 (arXiv 1512.03385), section 4.2: a 3x3 stem, three stages of n basic blocks
        with ``width * (1, 2, 4)`` channels, n = 3 for ResNet-20 and 9 for ResNet-56. Where the shape changes, the
        shortcut is a projection: 1x1 convolution + BatchNorm (option B). Option A of the paper, zero-padded
        channels, is not offered: padding ties channels of two stages without a parameter that says so.
    VGG-16-BN: the 13 convolutions of Simonyan & Zisserman (arXiv 1409.1556), each with BatchNorm and without bias,
        four 2x2 max-pools, global average pooling and one linear classifier, as in Network Slimming
        (Liu et al. 2017, arXiv 1708.06519), whose 2x2 average pool is the global one at 32x32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models import register_model as _register_model
from torch import Tensor, nn

_Entry = TypeVar("_Entry", bound=Callable[..., nn.Module])
register_model: Callable[[_Entry], _Entry] = _register_model  # timm is untyped; the decorator returns what it gets

# multiples of the width; None is a 2x2 max-pool
_VGG16 = (1, 1, None, 2, 2, None, 4, 4, 4, None, 8, 8, 8, None, 8, 8, 8)


class CifarNet(nn.Module):
    """What the networks share: timm's model surface around ``forward_features`` and one pooled linear head.

    Attributes:
        num_classes: outputs of the classifier, 0 for none.
        in_chans: channels of the input.
        num_features: channels of ``forward_features``'s output, and of the pooled features.
        head_hidden_size: the same number, under the name timm uses for the classifier's input.
        feature_info: timm's description of the stages, for ``features_only=True``.
    """

    num_features: int
    head_hidden_size: int
    head: Any  # timm.layers.ClassifierHead
    pretrained_cfg: dict[str, Any]

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []

    def _finish(self, num_features: int, global_pool: str) -> None:
        """Adds the head last, so that parameters stand in the order of the forward pass, and initialises."""
        self.num_features = self.head_hidden_size = num_features
        self.head = ClassifierHead(num_features, self.num_classes, pool_type=global_pool, drop_rate=self.drop_rate)
        self.init_weights()

    def init_weights(self) -> None:
        """Kaiming normal (fan out) for convolutions, ones and zeros for BatchNorm, torch's default for the classifier.

        No scale factor starts at zero: a channel must not look dead to a pruning rule before it is trained.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def get_classifier(self) -> nn.Module:
        """Returns the linear classifier (``nn.Identity`` when ``num_classes`` is 0)."""
        return self.head.fc  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one with ``num_classes`` outputs (0 removes it)."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Gradient checkpointing is not supported (the networks are small).

        Raises:
            NotImplementedError: when it is asked for.
        """
        if enable:
            raise NotImplementedError(f"{type(self).__name__} does not support gradient checkpointing")

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images ``(N, in_chans, H, W)`` to feature maps ``(N, num_features, h, w)``."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools ``(N, num_features, h, w)`` and, unless ``pre_logits``, classifies: ``(N, num_classes)``."""
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(N, in_chans, H, W)``, H and W >= 8, to logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, or 1x1 convolution + BatchNorm where the shape changes."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_chs != out_chs:
            self.downsample = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), nn.BatchNorm2d(out_chs))
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.act2(x + shortcut)  # type: ignore[no-any-return]


class CifarResNet(CifarNet):
    """A ResNet for small images: depth ``6 * blocks + 2``, stages of ``width * (1, 2, 4)`` channels.

    Args:
        blocks: basic blocks in each of the three stages.
        num_classes: outputs of the classifier, 0 for pooled features.
        in_chans: channels of the input.
        width: channels of the stem and the first stage.
        drop_rate: dropout before the classifier, in [0, 1).
        global_pool: timm's pooling name ("avg", "max", "" for none).
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_chans: int = 3,
        width: int = 16,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = self._stage(blocks, width, width, 1)
        self.layer2 = self._stage(blocks, width, 2 * width, 2)
        self.layer3 = self._stage(blocks, 2 * width, 4 * width, 2)
        self._finish(4 * width, global_pool)

    def _stage(self, blocks: int, in_chs: int, out_chs: int, stride: int) -> nn.Sequential:
        reduction = stride * (self.feature_info[-1]["reduction"] if self.feature_info else 1)
        module = f"layer{len(self.feature_info) + 1}"
        self.feature_info.append({"num_chs": out_chs, "reduction": reduction, "module": module})
        first = _Block(in_chs, out_chs, stride)
        return nn.Sequential(first, *(_Block(out_chs, out_chs, 1) for _ in range(blocks - 1)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's parameter groups for layer-wise learning rates."""
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))  # type: ignore[no-any-return]


class CifarVGG(CifarNet):
    """A VGG with BatchNorm for small images: convolutions, max-pools and one linear classifier.

    The arguments are those of `CifarResNet`, without ``blocks``; ``width`` is that of the first convolutions.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        width: int = 64,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        layers: list[nn.Module] = []
        chs, reduction = in_chans, 1
        for multiple in _VGG16:
            if multiple is None:
                self._tap(chs, reduction, len(layers) - 1)
                # ceil_mode leaves even sizes alone and keeps a 1x1 map at the last pool of an 8x8 input
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
                reduction *= 2
            else:
                conv = nn.Conv2d(chs, multiple * width, 3, 1, 1, bias=False)
                chs = multiple * width
                layers += [conv, nn.BatchNorm2d(chs), nn.ReLU(inplace=True)]
        self._tap(chs, reduction, len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self._finish(chs, global_pool)

    def _tap(self, num_chs: int, reduction: int, index: int) -> None:
        self.feature_info.append({"num_chs": num_chs, "reduction": reduction, "module": f"features.{index}"})

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns timm's parameter groups for layer-wise learning rates."""
        return {"stem": r"^features\.[01]\.", "blocks": r"^features\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)  # type: ignore[no-any-return]


def _cfg(first_conv: str) -> dict[str, Any]:
    """timm's default configuration of a network without pretrained weights; mean and std are CIFAR-10's."""
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": first_conv,
        "classifier": "head.fc",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({
    "resnet20_cifar": _cfg("conv1"),
    "resnet56_cifar": _cfg("conv1"),
    "vgg16_bn_cifar": _cfg("features.0"),
})  # fmt: skip


def _build(cls: type[CifarNet], name: str, pretrained: bool, stages: int, **kwargs: Any) -> nn.Module:
    feature_cfg = {"out_indices": tuple(range(stages)), "flatten_sequential": cls is CifarVGG}
    model: nn.Module = build_model_with_cfg(cls, name, pretrained, feature_cfg=feature_cfg, **kwargs)
    return model


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 for 32x32 images; the keyword arguments are those of `CifarResNet`."""
    return _build(CifarResNet, "resnet20_cifar", pretrained, 3, blocks=3, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-56 for 32x32 images; the keyword arguments are those of `CifarResNet`."""
    return _build(CifarResNet, "resnet56_cifar", pretrained, 3, blocks=9, **kwargs)


@register_model
def vgg16_bn_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG-16-BN for 32x32 images; the keyword arguments are those of `CifarVGG`."""
    return _build(CifarVGG, "vgg16_bn_cifar", pretrained, 5, **kwargs)
