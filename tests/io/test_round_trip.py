"""The same model comes back, bit for bit but for the sign of zeros, whatever its tensors are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.io import load_pruned, pruned_state_dict, save_pruned
from lightning_prune.io.format.bitmask import bits
from lightning_prune.io.format.container import DTYPES
from lightning_prune.io.format.sparsefile import read_header
from tests.io.models import same_bits, thin

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("resnet18", {"num_classes": 10, "in_chans": 1}),
    ("efficientnet_b0", {"num_classes": 10}),
    ("mixnet_s", {"num_classes": 10}),
    ("vit_tiny_patch16_224", {"img_size": 64, "num_classes": 5}),
    ("resnet20_cifar", {"width": 12, "in_chans": 1, "num_classes": 0}),
]


@pytest.mark.parametrize(("name", "kwargs"), MODELS)
def test_timm_models_come_back(tmp_path: Path, name: str, kwargs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = thin(timm.create_model(name, **kwargs)).eval()
    with torch.no_grad():
        for key, buffer in model.named_buffers():
            if key.endswith("num_batches_tracked"):
                buffer += 12345
    path = save_pruned(model, tmp_path / "new" / "folder" / "model.safetensors")
    loaded = load_pruned(path).eval()
    assert type(loaded) is type(model)
    assert same_bits(model.state_dict(), loaded.state_dict())
    size = kwargs.get("img_size", 32)
    x = torch.randn(2, kwargs.get("in_chans", 3), size, size)
    with torch.no_grad():
        assert bits(model(x)).equal(bits(loaded(x)))  # buffers outside the state_dict are right too
    plain = timm.create_model(name, **kwargs)
    plain.load_state_dict(pruned_state_dict(path), strict=True)
    assert same_bits(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_special_values_survive_in_every_width(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Linear(100, 50).to(dtype)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0, :6] = torch.tensor([2.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3.0])
        bits(model.weight.data)[1, 0] = -1  # a NaN with a payload
        bits(model.weight.data)[1, 1] = 1  # the smallest denormal
        bits(model.weight.data)[1, 2] = torch.iinfo(bits(model.weight.data).dtype).min + 1  # and its negative
    path = save_pruned(model, tmp_path / "m.safetensors")
    assert read_header(path).tensors["weight"].sparse
    assert same_bits(model.state_dict(), pruned_state_dict(path))
    assert same_bits(model.state_dict(), load_pruned(path, nn.Linear(100, 50)).state_dict())


@pytest.mark.parametrize("values", [None, "float16", "int8"])
def test_every_dtype_comes_back(tmp_path: Path, values: str | None) -> None:
    """What is no wide float is not narrowed."""
    model = nn.Module()
    kept = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    for name, dtype in DTYPES.items():
        if values is None or not dtype.is_floating_point or dtype.itemsize == 1:
            model.register_buffer(f"sparse {name}", kept.to(dtype))
            model.register_buffer(f"dense {name}", torch.ones(3, dtype=dtype))
    assert same_bits(model.state_dict(), pruned_state_dict(save_pruned(model, tmp_path / "m", values=values)))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_zeros_come_back_positive(tmp_path: Path, dtype: torch.dtype, sparse: bool) -> None:
    model = nn.Linear(100, 50).to(dtype)
    kept = torch.rand(50, 100, generator=torch.Generator().manual_seed(0)) < (0.1 if sparse else 0.99)
    with torch.no_grad():
        model.weight.mul_(kept)
    negative = (model.weight == 0) & model.weight.signbit()
    assert negative.any()
    path = save_pruned(model, tmp_path / "m.safetensors")
    assert read_header(path).tensors["weight"].sparse == sparse
    assert (model.weight[negative] == 0).all()
    assert model.weight[negative].signbit().all()  # saving changes nothing
    loaded = load_pruned(path, nn.Linear(100, 50))
    assert same_bits(loaded.state_dict(), pruned_state_dict(path))
    assert bits(loaded.weight.detach()).equal(bits(model.weight.detach()).masked_fill(negative, 0))
    x = torch.randn(3, 100, dtype=dtype)
    assert loaded(x).equal(model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_converted_timm_model_comes_back_in_its_width(tmp_path: Path, dtype: torch.dtype) -> None:
    model = thin(timm.create_model("resnet20_cifar", width=8)).to(dtype)
    loaded = load_pruned(save_pruned(model, tmp_path / "m.safetensors"))
    assert same_bits(model.state_dict(), loaded.state_dict())
    assert loaded.conv1.weight.dtype == dtype


def test_memory_formats_and_views_are_stored_by_value(tmp_path: Path) -> None:
    model = thin(timm.create_model("resnet20_cifar", width=8)).to(memory_format=torch.channels_last)
    assert not model.layer3[0].conv1.weight.is_contiguous()
    loaded = load_pruned(save_pruned(model, tmp_path / "m.safetensors"))
    assert same_bits(model.state_dict(), loaded.state_dict())

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.arange(12.0).reshape(3, 4)
            self.register_buffer("base", base)
            self.register_buffer("turned", base.t())
            self.register_buffer("part", base[1:])
            self.register_buffer("empty", torch.empty(0, 3))

    path = save_pruned(Views(), tmp_path / "views.safetensors")
    assert read_header(path).aliases == {}  # same storage, different tensors
    assert read_header(path).info["sparsity"]["prunable"] == 0  # no conv or linear weight is no error
    assert same_bits(Views().state_dict(), pruned_state_dict(path))


def test_the_model_goes_to_the_device(tmp_path: Path) -> None:
    path = save_pruned(timm.create_model("resnet20_cifar", width=4), tmp_path / "m.safetensors")
    assert load_pruned(path, device="meta").conv1.weight.is_meta  # the only other device on every machine
    assert load_pruned(path, device=torch.device("cpu")).training


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_loading_draws_no_random_numbers(name: str, tmp_path: Path) -> None:
    """Parameters that are about to be filled are not initialised first, which takes longer than reading them."""
    model = timm.create_model(name, num_classes=10)
    save_pruned(model, tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    loaded = load_pruned(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
