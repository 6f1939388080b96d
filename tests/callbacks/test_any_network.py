"""Channel pruning by scores on networks of all kinds of norm, and of none: budget met or said, file round trip."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from lightning_prune import FPGMCallback, PlanError, load_pruned, save_pruned
from tests.callbacks import toys
from tests.callbacks.methods import Make, fit, macs, size
from tests.toy import CLASSES, Toy, loaders

SIZES: dict[str, int] = {
    "norm-free": 8, "test_convnext": 32, "test_convnext2": 32, "test_convnext3": 32, "test_efficientnet_gn": 32,
    "test_mambaout": 64, "test_vit": 160, "test_vit2": 160,
}  # fmt: skip
HELD_BACK = {  # by norms over the channels, or over what would be sliced of a kernel
    "test_efficientnet_ln": "layer_norm at", "test_efficientnet_evos": "var at",
    "test_nfnet": r"\(ScaledStdConv2d\): the weight is computed while running",
}  # fmt: skip


class NormFree(nn.Module):
    """Convolutions, a residual and a linear head, without any norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = x + self.outer(F.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


class Classifier(Toy):
    """A network on the toy images, enlarged to what it takes."""

    def __init__(self, name: str) -> None:
        super().__init__(built="never", optimizer="adamw", lr=0.01)
        torch.manual_seed(0)
        self.size = SIZES.get(name, 32)
        self.net = NormFree() if name == "norm-free" else timm.create_model(name, num_classes=CLASSES, in_chans=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(F.interpolate(x, (self.size, self.size)))


def pruned(path: Path, name: str, make: Make, **options: Any) -> tuple[Classifier, Any]:
    """Three epochs of two batches; the channels go after the second."""
    given = {"target_macs": 0.7, "warmup": 1, "sparsify": 1, "min_keep": 0.1} | options
    module, callback, _ = fit(
        path, make, Classifier(name), data=loaders(4, 8), options=given, max_epochs=3, num_sanity_val_steps=0,
        limit_val_batches=0,
    )  # fmt: skip
    return module, callback


def check(path: Path, name: str, module: Classifier, callback: Any, share: float, said: list[str]) -> None:
    """Smaller by PyTorch's own counter, a finite output, and the same one from the file."""
    shape = (1, 1, module.size, module.size)
    left = macs(module.net, shape) / macs(Classifier(name).net, shape)
    assert left == pytest.approx(callback.numbers["macs"], rel=1e-3)
    assert left <= 1.001 * share
    assert left >= 0.98 * share or [line for line in said if "under the target of" in line]
    assert size(module) < size(Classifier(name))
    check_file(path, name, module)


def check_file(path: Path, name: str, module: Classifier) -> None:
    """The compact network, loaded, computes the same."""
    x = torch.randn(2, 1, module.size, module.size)
    loaded = load_pruned(save_pruned(module.net, path / "compact.safetensors"), Classifier(name).net)
    with torch.no_grad():
        expected = module.net.eval()(x)
        assert expected.isfinite().all()
        torch.testing.assert_close(loaded.eval()(x), expected, rtol=1e-5, atol=1e-6)


CASES = [*((name, FPGMCallback) for name in SIZES), *((n, toys.ChannelScore) for n in ("norm-free", "test_vit"))]


@pytest.mark.parametrize(("name", "make"), CASES)
def test_it_shrinks_to_its_budget(name: str, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "lightning_prune")
    module, callback = pruned(tmp_path, name, make)
    check(tmp_path, name, module, callback, 0.7, [r.getMessage() for r in caplog.records])


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_whole_heads_go(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "lightning_prune")
    module, callback = pruned(tmp_path, name, FPGMCallback, surgery={"attention": "heads"}, target_macs=0.6)
    check(tmp_path, name, module, callback, 0.6, [r.getMessage() for r in caplog.records])
    blocks = list(zip(module.net.blocks, Classifier(name).net.blocks, strict=True))
    assert all(now.attn.head_dim == dense.attn.head_dim for now, dense in blocks)
    assert any(now.attn.num_heads < dense.attn.num_heads for now, dense in blocks)
    assert any(now.mlp.fc1.out_features < dense.mlp.fc1.out_features for now, dense in blocks)


@pytest.mark.parametrize("name", HELD_BACK)
def test_what_holds_a_network_back_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=rf"target_macs=0.7 cannot be met: .*stay whole: .*{HELD_BACK[name]} "):
        pruned(tmp_path, name, FPGMCallback)
