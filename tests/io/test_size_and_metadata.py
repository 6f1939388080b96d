"""How large a file is, and what it says of the model in it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.io import load_pruned, pruned_info, save_pruned
from lightning_prune.io.format.sparsefile import read_header
from tests.io.models import same_bits, thin
from tests.io.tampering import take_apart


def test_a_sparse_resnet18_takes_a_tenth(tmp_path: Path) -> None:
    model = thin(timm.create_model("resnet18", num_classes=10))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "dense.safetensors")
    path = save_pruned(model, tmp_path / "sparse.safetensors")
    ratio = path.stat().st_size / (tmp_path / "dense.safetensors").stat().st_size
    assert 0.1 < ratio < 0.135  # 1/10 values, 1/32 mask


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("name", ["resnet20_cifar", "mobilenetv3_small_050"])
def test_a_file_is_within_5_percent_of_its_bitmasks_and_values(tmp_path: Path, name: str, sparsity: float) -> None:
    """Many small layers: 128 tensors in 62 KB, and 210 in 144 KB, at 98 %."""
    model = thin(timm.create_model(name, num_classes=10), sparsity)
    ideal = 0
    for tensor in model.state_dict().values():
        packed = -(-tensor.numel() // 8) + int(tensor.count_nonzero()) * tensor.element_size()
        ideal += min(tensor.nbytes, packed)
    assert save_pruned(model, tmp_path / "m.safetensors").stat().st_size < 1.05 * ideal


def test_a_model_pruned_by_a_product_with_masks_takes_no_more(tmp_path: Path) -> None:
    """Half of the zeros of ``weight * mask`` are -0.0."""
    model = timm.create_model("resnet18", num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(module, "weight", 0.9)
            prune.remove(module, "weight")
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter[parameter == 0] = 0
    assert not same_bits(model.state_dict(), plain.state_dict())
    path = save_pruned(model, tmp_path / "product.safetensors")
    assert path.read_bytes() == save_pruned(plain, tmp_path / "plain.safetensors").read_bytes()


def test_a_dense_model_is_hardly_larger_than_its_dense_file(tmp_path: Path) -> None:
    model = timm.create_model("resnet20_cifar")
    save_file(dict(model.state_dict()), tmp_path / "dense.safetensors")
    path = save_pruned(model, tmp_path / "model.safetensors")
    assert path.stat().st_size < 1.02 * (tmp_path / "dense.safetensors").stat().st_size


def test_metadata_says_what_it_is(tmp_path: Path) -> None:
    path = save_pruned(thin(timm.create_model("resnet20_cifar", width=8)), tmp_path / "m.safetensors")
    info = read_header(path).info
    assert info["name"] == "resnet20_cifar"
    assert info["kwargs"]["width"] == 8
    assert info["versions"]["timm"] == timm.__version__
    assert set(info["versions"]) == {"lightning_prune", "torch", "timm", "safetensors"}
    assert set(info["sparsity"]) == {"prunable", "zeros", "sparsity", "compression"}
    assert info["sparsity"]["sparsity"] == pytest.approx(0.9, abs=0.01)
    assert info["sparsity"]["zeros"] == pytest.approx(info["sparsity"]["sparsity"] * info["sparsity"]["prunable"])
    told = {key: value for key, value in info.items() if key != "plans"}
    assert pruned_info(path) == {**told, "compact": False, "bytes": path.stat().st_size}
    assert (told["format"], told["values"], told["compression"]) == (3, None, None)
    stored = load_file(path)  # any safetensors reader opens it
    assert {name: entry.dtype for name, entry in stored.items()} == {
        "index": torch.uint8, "masks": torch.uint8, "F32": torch.float32, "I64": torch.int64,
    }  # fmt: skip


def test_a_model_of_zeros_has_no_compression_number(tmp_path: Path) -> None:
    model = thin(timm.create_model("resnet20_cifar", width=4), 2.0)
    path = save_pruned(model, tmp_path / "m.safetensors")
    assert read_header(path).info["sparsity"]["compression"] is None
    assert same_bits(model.state_dict(), load_pruned(path).state_dict())


def test_json_in_the_file_is_strict(tmp_path: Path) -> None:
    path = save_pruned(timm.create_model("resnet20_cifar", width=4, drop_rate=0.1), tmp_path / "m.safetensors")
    header, _, _ = take_apart(path)
    info = json.loads(header["__metadata__"]["lightning_prune"], parse_constant=lambda text: pytest.fail(text))
    assert info["kwargs"]["drop_rate"] == 0.1
