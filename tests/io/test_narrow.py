"""Weights stored in fewer bits: the error is the rounding's, it is recorded, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.io import PrunedFileError, load_pruned, pruned_info, pruned_state_dict, save_pruned
from lightning_prune.io.format.narrow import narrow, widen
from tests.io.models import same_bits, thin


def test_int8_by_hand() -> None:
    """Scales are the largest magnitude of a row over 127; 0.6 of a step rounds up, 0.4 down to a zero."""
    weight = torch.tensor([[254.0, -127.0, 1.2, 0.0], [0.0, 0.0, 0.0, 0.0], [-1.27, 0.004, 0.006, 0.5]])
    stored, scales = narrow(weight, "int8")
    assert scales is not None
    assert scales.tolist() == pytest.approx([2, 0, 0.01])
    assert stored.tolist() == [[127, -64, 1, 0], [0, 0, 0, 0], [-127, 0, 1, 50]]  # halves to even
    back = widen(stored, scales, torch.float32)
    assert back[0].tolist() == [254, -128, 2, 0]
    assert not (back.signbit() & (back == 0)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("values", ["float16", "int8"])
def test_each_weight_is_off_by_half_a_step_at_most(values: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.arange(-3, 5, dtype=torch.float64).view(-1, 1, 1, 1)
    weight = (torch.randn(8, 5, 3, 3, generator=generator, dtype=torch.float64) * sizes).to(dtype)
    weight = weight.clamp(-6e4, 6e4)
    weight[weight.abs() < 1e-4] = 0
    stored, scales = narrow(weight, values)
    back = widen(stored, scales, dtype)
    assert back.dtype == dtype
    error = (back.double() - weight.double()).abs().flatten(1)
    if values == "float16":
        assert (error <= weight.double().abs().flatten(1) * 2**-11 + 2**-25).all()
        assert (stored.dtype == torch.float16) == (dtype.itemsize > 2) or dtype == torch.float16
    else:
        step = weight.double().abs().flatten(1).amax(1, keepdim=True) / 127
        own = weight.double().abs().flatten(1) * torch.finfo(dtype).eps  # the model's own rounding
        assert (error <= 0.5001 * step + own).all()


@pytest.mark.parametrize("values", ["float16", "int8"])
def test_what_comes_back_is_what_is_recorded(tmp_path: Path, values: str) -> None:
    torch.manual_seed(0)
    model = thin(timm.create_model("resnet20_cifar", width=8), 0.8)
    exact = save_pruned(model, tmp_path / "exact.safetensors")
    path = save_pruned(model, tmp_path / "narrow.safetensors", values=values)
    before, after = model.state_dict(), load_pruned(path).state_dict()
    assert list(before) == list(after)
    errors = {}
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        if tensor.ndim < 2:
            assert after[key].equal(tensor)
        else:
            assert after[key].count_nonzero() <= tensor.count_nonzero()
            assert (after[key][tensor == 0] == 0).all()
            errors[key] = ((after[key] - tensor).double().square().sum(), tensor.double().square().sum())
    told = pruned_info(path)["values"]
    total = sum(e for e, _ in errors.values()) / sum(w for _, w in errors.values())
    worst = max(errors, key=lambda key: float(errors[key][0] / errors[key][1]))
    assert told["relative_error"] == pytest.approx(float(total) ** 0.5, rel=1e-6)
    assert told["worst_tensor"] == worst
    assert told["worst_relative_error"] == pytest.approx(float(errors[worst][0] / errors[worst][1]) ** 0.5, rel=1e-6)
    assert 0 < told["relative_error"] < (0.0005 if values == "float16" else 0.02)
    assert path.stat().st_size < (0.75 if values == "float16" else 0.65) * exact.stat().st_size


def test_tensors_that_fewer_bits_do_not_make_smaller_stay(tmp_path: Path) -> None:
    """One weight a row: a scale of four bytes a row is more than the three that int8 saves."""
    weight = torch.diag(torch.rand(40) + 1)
    assert narrow(weight, "int8")[0] is weight
    assert narrow(torch.zeros(3, 0), "int8")[1] is None
    ints = torch.ones(4, 4, dtype=torch.int64)
    assert narrow(ints, "float16")[0] is ints


@pytest.mark.parametrize(
    ("values", "weight", "match"),
    [
        ("float16", torch.full((9, 9), 1e6), "1e\\+06, above the 65504"),
        ("int8", torch.full((9, 9), float("nan")), "NaN or infinity"),
        ("float16", torch.full((9, 9), float("inf")), "NaN or infinity"),
        ("int8", torch.full((9, 9), 1e300, dtype=torch.float64), "1e\\+300, above the range"),
        ("int4", torch.zeros(9, 9), "values='int4' is unknown.*'float16', 'int8'"),
    ],
)
def test_what_cannot_be_narrowed_is_named(tmp_path: Path, values: str, weight: Tensor, match: str) -> None:
    model = nn.Linear(9, 9).to(weight.dtype)
    model.weight.data.copy_(weight)
    with pytest.raises(PrunedFileError, match=match):
        save_pruned(model, tmp_path / "m.safetensors", values=values)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [None, "float16", "int8"])
def test_zstd_changes_the_size_and_nothing_else(tmp_path: Path, values: str | None) -> None:
    model = thin(timm.create_model("resnet20_cifar", width=8), 0.95)
    plain = save_pruned(model, tmp_path / "plain.safetensors", values=values)
    packed = save_pruned(model, tmp_path / "packed.safetensors", values=values, compress="zstd")
    assert packed.stat().st_size < 0.8 * plain.stat().st_size
    assert pruned_info(packed)["compression"] == "zstd"
    assert same_bits(pruned_state_dict(packed), pruned_state_dict(plain))


def test_a_model_of_zeros_does_not_grow_without_bound(tmp_path: Path) -> None:
    """zstd would pack 4 MB of zeros into 100 bytes; a reader takes no file that asks for so much."""
    model = nn.Linear(2000, 1000, bias=False)
    nn.init.zeros_(model.weight)
    path = save_pruned(model, tmp_path / "m.safetensors", compress="zstd")
    assert pruned_info(path)["compression"] is None
    assert not pruned_state_dict(path)["weight"].any()


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = thin(nn.Linear(100, 100), 0.9)
    path = save_pruned(model, tmp_path / "m.safetensors", compress="zstd")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    for act in (
        lambda: save_pruned(model, tmp_path / "n.safetensors", compress="zstd"),
        lambda: pruned_state_dict(path),
    ):
        with pytest.raises(PrunedFileError, match=r'zstandard.*pip install "lightning-prune\[zstd\]"'):
            act()
    with pytest.raises(PrunedFileError, match="compress='lz4' is unknown"):
        save_pruned(model, tmp_path / "n.safetensors", compress="lz4")
