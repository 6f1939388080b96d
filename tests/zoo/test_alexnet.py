"""AlexNet is torchvision's, under timm's surface."""

from __future__ import annotations

import timm
import torch
from torchvision.models import AlexNet_Weights
from torchvision.models import alexnet as torchvisions

import lightning_prune.zoo.alexnet  # noqa: F401  registers it


def test_it_computes_what_torchvisions_does_and_reads_its_weights() -> None:
    with torch.device("meta"):
        there, here = torchvisions().state_dict(), timm.create_model("alexnet").state_dict()
    assert {k: v.shape for k, v in here.items()} == {k: v.shape for k, v in there.items()}
    ours, theirs = timm.create_model("alexnet", num_classes=5).eval(), torchvisions(num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict())
    for size in (63, 100):
        x = torch.randn(1, 3, size, size)
        torch.testing.assert_close(ours(x), theirs(x))
    cfg = ours.pretrained_cfg
    assert cfg["url"] == AlexNet_Weights.IMAGENET1K_V1.url
    assert cfg["input_size"][-1] == 224


def test_timms_surface() -> None:
    model = timm.create_model("alexnet", num_classes=7, in_chans=1, drop_rate=0.0).eval()
    x = torch.randn(2, 1, 64, 64)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 1, 1)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, 4096)
    model.reset_classifier(3)
    assert model.get_classifier().out_features == 3
