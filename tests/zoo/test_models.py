"""The CIFAR networks: layout, timm surface, and every size and option they promise to take."""

import warnings

import pytest
import timm
import torch
from torch import Tensor, nn

import lightning_prune.zoo.models as models

NAMES = ["resnet20_cifar", "resnet56_cifar", "vgg16_bn_cifar"]


def build(name: str, **kwargs: object) -> models.CifarNet:
    model = timm.create_model(name, **kwargs)
    assert isinstance(model, models.CifarNet)
    return model


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def weighted(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_names_are_in_timms_registry_once() -> None:
    assert set(NAMES) <= set(timm.list_models("*_cifar"))
    assert [timm.is_model_pretrained(name) for name in NAMES] == [False] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import lightning_prune.zoo.models  # noqa: F401  a second import must not register again


@pytest.mark.parametrize(
    ("name", "convs", "parameters"),
    # ResNet: 2n*3 + 1 convolutions and 2 projections (2752 parameters more than the paper's 0.27 M and 0.85 M);
    # VGG: 14 710 464 convolution weights, 2 x 4224 BatchNorm, 5130 classifier.
    [("resnet20_cifar", 19 + 2, 272_474), ("resnet56_cifar", 55 + 2, 855_770), ("vgg16_bn_cifar", 13, 14_724_042)],
)
def test_layout_of_the_sources(name: str, convs: int, parameters: int) -> None:
    model = build(name)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convs
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == 1
    assert count(model) == parameters


def test_resnet20_stages_have_the_papers_shapes() -> None:
    model = build("resnet20_cifar").eval()
    shapes: list[tuple[int, ...]] = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))  # type: ignore[union-attr]
    model(torch.zeros(1, 3, 32, 32))
    assert shapes == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]


def test_vgg_pools_to_two_by_two_at_32_pixels() -> None:
    assert build("vgg16_bn_cifar", width=8).eval().forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 2, 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (28, 28), (33, 17)])
def test_any_size_channels_classes_and_width(name: str, size: tuple[int, int]) -> None:
    model = build(name, num_classes=7, in_chans=1, width=6, drop_rate=0.1)
    x = torch.randn(2, 1, *size)
    logits = model(x)  # train mode: dropout and batch statistics work too
    assert logits.shape == (2, 7)
    logits.sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_timm_surface(name: str) -> None:
    model = build(name, num_classes=5, width=4).eval()
    x = torch.randn(2, 3, 16, 16)
    features = model.forward_features(x)
    assert features.shape[:2] == (2, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(x), rtol=0, atol=0)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert isinstance(model.get_classifier(), nn.Linear)
    assert model.pretrained_cfg["architecture"] == name
    assert dict(model.named_modules())[model.pretrained_cfg["classifier"]] is model.get_classifier()
    assert dict(model.named_modules())[model.pretrained_cfg["first_conv"]].weight.shape[1] == 3
    assert weighted(model)[0] == model.pretrained_cfg["first_conv"]
    assert weighted(model)[-1] == "head.fc"
    model.reset_classifier(3)
    assert (model.num_classes, model(x).shape) == (3, (2, 3))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled, rtol=0, atol=0)
    with pytest.raises(NotImplementedError, match="checkpointing"):
        model.set_grad_checkpointing()


@pytest.mark.parametrize("name", NAMES)
def test_headless_build_and_feature_pyramid(name: str) -> None:
    model = build(name, num_classes=0, width=4)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, model.num_features)
    pyramid = timm.create_model(name, features_only=True, width=4).eval()
    maps: list[Tensor] = pyramid(torch.zeros(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == pyramid.feature_info.channels()
    assert [32 // m.shape[-1] for m in maps] == pyramid.feature_info.reduction()


@pytest.mark.parametrize("name", NAMES)
def test_initialisation_is_kaiming_and_leaves_no_scale_factor_at_zero(name: str) -> None:
    torch.manual_seed(0)
    model = build(name)
    for module_name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()), module_name
            assert bool((module.bias == 0).all()), module_name
        elif isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            k = module.kernel_size[0]
            expected = (2.0 / (module.out_channels * k * k)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), module_name


def test_pretrained_weights_are_refused_with_a_reason() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model("resnet20_cifar", pretrained=True)
