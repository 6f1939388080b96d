"""Saving and loading: the same model comes back, bit for bit, from a small file, or nothing is written."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lightning_prune.io.pruned as io
import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from lightning_prune.io.bitmask import bits
from lightning_prune.io.rebuild import first_difference
from lightning_prune.io.sparsefile import read_header
from tests.io.test_sparsefile import put_together, take_apart
from tests.memory import memory_below


def thin(model: nn.Module, sparsity: float = 0.9) -> nn.Module:
    """Zeroes that share of the weights of convolutions and linear layers, at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter[torch.rand(parameter.shape, generator=generator) < sparsity] = 0
    return model


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and bits(x.contiguous()).equal(bits(y.contiguous()))
        for x, y in zip(a.values(), b.values(), strict=True)
    )


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


def test_a_sparse_resnet18_takes_a_tenth(tmp_path: Path) -> None:
    model = thin(timm.create_model("resnet18", num_classes=10))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "dense.safetensors")
    path = save_pruned(model, tmp_path / "sparse.safetensors")
    ratio = path.stat().st_size / (tmp_path / "dense.safetensors").stat().st_size
    assert 0.1 < ratio < 0.135  # 1/10 values, 1/32 mask


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
    stored = load_file(path)  # any safetensors reader opens it
    assert stored["layer3.0.conv1.weight::mask"].dtype == torch.uint8


def test_a_model_of_zeros_has_no_compression_number(tmp_path: Path) -> None:
    model = thin(timm.create_model("resnet20_cifar", width=4), 2.0)
    path = save_pruned(model, tmp_path / "m.safetensors")
    assert read_header(path).info["sparsity"]["compression"] is None
    assert same_bits(model.state_dict(), load_pruned(path).state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_special_values_survive_in_every_width(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Linear(100, 50).to(dtype)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0, :6] = torch.tensor([-0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3.0])
        bits(model.weight.data)[1, 0] = -1  # a NaN with a payload
        bits(model.weight.data)[1, 1] = 1  # the smallest denormal
    path = save_pruned(model, tmp_path / "m.safetensors")
    assert read_header(path).tensors["weight"].sparse
    assert same_bits(model.state_dict(), pruned_state_dict(path))
    assert same_bits(model.state_dict(), load_pruned(path, nn.Linear(100, 50)).state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_converted_timm_model_comes_back_in_its_width(tmp_path: Path, dtype: torch.dtype) -> None:
    model = thin(timm.create_model("resnet20_cifar", width=8)).to(dtype)
    loaded = load_pruned(save_pruned(model, tmp_path / "m.safetensors"))
    assert same_bits(model.state_dict(), loaded.state_dict())
    assert loaded.conv1.weight.dtype == dtype


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(60, 30)
        self.decoder = nn.Linear(30, 60, bias=False)
        self.decoder.weight = self.encoder.weight


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    path = save_pruned(model, tmp_path / "m.safetensors")
    header = read_header(path)
    assert (list(header.tensors), header.aliases) == (["encoder.weight"], {"decoder.weight": "encoder.weight"})
    assert path.stat().st_size < 1.2 * 60 * 30 * 4
    target = Tied()
    loaded = load_pruned(path, target)
    assert loaded is target
    assert target.decoder.weight is target.encoder.weight
    assert same_bits(model.state_dict(), target.state_dict())
    half = load_pruned(save_pruned(Tied().half(), path), Tied())
    assert half.decoder.weight is half.encoder.weight
    assert half.decoder.weight.dtype == torch.float16


def test_a_model_that_ties_what_differs_is_refused(tmp_path: Path) -> None:
    model = Tied()
    model.decoder.weight = nn.Parameter(torch.randn(60, 30))
    path = save_pruned(model, tmp_path / "m.safetensors")
    assert read_header(path).aliases == {}
    with pytest.raises(PrunedFileError, match="ties"):
        load_pruned(path, Tied())


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


def classifier(model: nn.Module, **hparams: Any) -> nn.Module:
    """The outside of a LightningModule around a timm model."""
    module = nn.Module()
    module.model = model
    module.hparams = SimpleNamespace(**hparams)  # type: ignore[assignment]
    return module


def test_a_classifiers_model_is_saved_and_filled(tmp_path: Path) -> None:
    inner = thin(timm.create_model("resnet18", num_classes=4, in_chans=1, global_pool="max"))
    module = classifier(
        inner, model_name="resnet18", num_classes=4, in_chans=1, model_kwargs={"global_pool": "max", "pretrained": True}
    )
    path = save_pruned(module, tmp_path / "m.safetensors")
    loaded = load_pruned(path)
    assert same_bits(inner.state_dict(), loaded.state_dict())
    assert loaded.global_pool.pool_type == "max"
    other = classifier(timm.create_model("resnet18", num_classes=4, in_chans=1), model_name="resnet18")
    assert load_pruned(path, other) is other
    assert same_bits(inner.state_dict(), other.model.state_dict())


def test_a_classifier_of_an_older_timm_tells_by_its_hparams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timm.models, "get_model_args")
    inner = timm.create_model("resnet20_cifar", num_classes=4, in_chans=2, width=6)
    del inner._model_args, inner.in_chans
    module = classifier(inner, model_name="resnet20_cifar", num_classes=4, in_chans=2, model_kwargs={"width": 6})
    assert same_bits(inner.state_dict(), load_pruned(save_pruned(module, tmp_path / "a.safetensors")).state_dict())
    with pytest.raises(PrunedFileError, match=r"conv1\.weight.*\(16, 2, 3, 3\).*\(6, 2, 3, 3\).*Pass kwargs="):
        save_pruned(inner, tmp_path / "b.safetensors")
    path = save_pruned(inner, tmp_path / "b.safetensors", kwargs={"width": 6})
    assert same_bits(inner.state_dict(), load_pruned(path).state_dict())


def test_what_torch_compile_wraps_is_saved(tmp_path: Path) -> None:
    model = timm.create_model("resnet20_cifar", width=4)
    path = save_pruned(torch.compile(model), tmp_path / "m.safetensors")  # type: ignore[arg-type]
    assert same_bits(model.state_dict(), load_pruned(path).state_dict())


def test_a_module_of_no_registry_needs_a_module_to_fill(tmp_path: Path) -> None:
    path = save_pruned(nn.Linear(3, 2), tmp_path / "m.safetensors")
    with pytest.raises(PrunedFileError, match="Pass model="):
        load_pruned(path)
    with pytest.raises(PrunedFileError, match=r"'weight'.*\(2, 4\).*\(2, 3\)"):
        load_pruned(path, nn.Linear(4, 2))
    with pytest.raises(PrunedFileError, match="bias"):
        load_pruned(path, nn.Linear(3, 2, bias=False))
    with pytest.raises(PrunedFileError, match="no name"):
        save_pruned(nn.Linear(3, 2), tmp_path / "n.safetensors", kwargs={"width": 3})


def test_a_model_that_would_not_rebuild_is_not_saved(tmp_path: Path) -> None:
    changed = timm.create_model("resnet20_cifar")
    changed.layer2[0].conv1 = nn.Conv2d(16, 30, 3)
    wrong = [
        (changed, {}, r"layer2\.0\.conv1\.weight.*\(32, 16, 3, 3\).*\(30, 16, 3, 3\).*Pass kwargs="),
        (timm.create_model("resnet20_cifar"), {"kwargs": {"width": 5}}, r"conv1\.weight.*Pass kwargs="),
        (timm.create_model("resnet20_cifar"), {"kwargs": {"act_layer": nn.ReLU}}, "act_layer.*plain JSON"),
        (timm.create_model("resnet20_cifar"), {"kwargs": {"pretrained": True}}, "pretrained"),
        (timm.create_model("resnet18", act_layer=nn.SiLU), {}, "act_layer.*plain JSON"),
        (nn.Linear(2, 2), {"name": "hf-hub:timm/resnet18"}, "not a timm name"),
        (nn.Linear(2, 2), {"name": "resnet20_cifar"}, r"conv1\.weight"),
    ]
    for model, arguments, match in wrong:
        with pytest.raises(PrunedFileError, match=match):
            save_pruned(model, tmp_path / "m.safetensors", **arguments)
        assert list(tmp_path.iterdir()) == []
    named = timm.create_model("resnet18", act_layer=nn.SiLU)
    loaded = load_pruned(save_pruned(named, tmp_path / "m.safetensors", kwargs={"act_layer": "silu"}))
    assert isinstance(loaded.act1, nn.SiLU)


def test_a_network_built_without_timms_factory_is_saved_by_name(tmp_path: Path) -> None:
    from lightning_prune.zoo.models import CifarResNet

    model = CifarResNet(3, width=8)
    path = save_pruned(model, tmp_path / "m.safetensors", name="resnet20_cifar", kwargs={"width": 8})
    assert same_bits(model.state_dict(), load_pruned(path).state_dict())


@pytest.mark.parametrize("tensor", [torch.zeros(3, dtype=torch.complex64), torch.zeros(3).to_sparse()])
def test_tensors_that_cannot_be_stored_are_named(tmp_path: Path, tensor: Tensor) -> None:
    module = nn.Module()
    module.register_buffer("odd", tensor)
    with pytest.raises(PrunedFileError, match="'odd'"):
        save_pruned(module, tmp_path / "m.safetensors")
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    with pytest.raises(PrunedFileError, match="meta"):
        save_pruned(empty, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(PrunedFileError, match="folder"):
        save_pruned(nn.Linear(2, 2), tmp_path)


def test_writing_is_atomic_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    first = nn.Linear(2, 2)
    save_pruned(first, path)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask

    def broken(source: Any, target: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(OSError, match="no space"):
            save_pruned(nn.Linear(2, 2), path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert same_bits(first.state_dict(), pruned_state_dict(path))
    save_pruned(nn.Linear(5, 5), path)
    assert pruned_state_dict(path)["weight"].shape == (5, 5)


def test_saving_changes_nothing_and_repeats(tmp_path: Path) -> None:
    model = thin(timm.create_model("resnet20_cifar", width=8)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    a = save_pruned(model, tmp_path / "a").read_bytes()
    assert a == save_pruned(model, str(tmp_path / "b")).read_bytes()
    assert model.training
    assert same_bits(before, model.state_dict())


HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("name", {"name": "hf-hub:evil/model"}, "not a timm name"),
    ("name", {"name": "local-dir:/tmp"}, "not a timm name"),
    ("name", {"name": "../../x"}, "not a timm name"),
    ("name", {"name": "nothing_like_it"}, "no model"),
    ("name", {"name": ["resnet18"]}, "not a timm name"),
    ("kwargs", {"kwargs": {"pretrained": True}}, "pretrained"),
    ("kwargs", {"kwargs": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path"),
    ("kwargs", {"kwargs": {"pretrained_cfg": {"file": "/tmp/x"}}}, "pretrained_cfg"),
    ("kwargs", {"kwargs": {"device": "cpu"}}, "device"),
    ("kwargs", {"kwargs": {"num_classes": 10**12}}, "number above"),
    ("kwargs", {"kwargs": {"width": 4, "num_classes": 8000}}, r"head\.fc"),
    ("kwargs", {"kwargs": {"width": 8192}}, r"conv1\.weight"),
    ("kwargs", {"kwargs": {"blocks": 3}}, "cannot build"),
    ("kwargs", {"kwargs": {"depths": [3] * 10**5}}, "items"),
    ("kwargs", {"kwargs": "x"}, "not an object"),
    ("both", {"name": "vit_tiny_patch16_224", "kwargs": {"depth": 8000}}, "parts"),
    ("both", {"name": "vit_base_patch16_224", "kwargs": {"embed_dim": 8160, "img_size": 8192}}, "tensor"),
]


@pytest.mark.parametrize(("what", "change", "match"), HOSTILE)
def test_a_hostile_recipe_is_refused_before_memory_is_taken(
    tmp_path: Path, what: str, change: dict[str, Any], match: str
) -> None:
    path = save_pruned(timm.create_model("resnet20_cifar", width=4), tmp_path / "good.safetensors")
    header, info, data = take_apart(path)
    put_together(path, header, info | change, data)
    with memory_below(2**27 if what == "both" else 2**24), pytest.raises(PrunedFileError, match=match) as caught:
        load_pruned(path)
    assert str(path) in str(caught.value)
    pruned_state_dict(path)  # the tensors are all right and can be had without the recipe


def test_only_the_constructor_of_the_name_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_pruned(timm.create_model("resnet20_cifar", width=4), tmp_path / "m.safetensors")

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("loading unpickled something")

    for target in ("pickle.load", "pickle.loads", "torch.load", "torch.hub.load_state_dict_from_url"):
        monkeypatch.setattr(target, forbidden)
    assert (
        first_difference(load_pruned(path), {k: (tuple(v.shape), v.dtype) for k, v in pruned_state_dict(path).items()})
        is None
    )


def test_the_model_goes_to_the_device(tmp_path: Path) -> None:
    path = save_pruned(timm.create_model("resnet20_cifar", width=4), tmp_path / "m.safetensors")
    assert load_pruned(path, device="meta").conv1.weight.is_meta  # the only other device on every machine
    assert load_pruned(path, device=torch.device("cpu")).training


def test_json_in_the_file_is_strict(tmp_path: Path) -> None:
    path = save_pruned(timm.create_model("resnet20_cifar", width=4, drop_rate=0.1), tmp_path / "m.safetensors")
    header, _, _ = take_apart(path)
    info = json.loads(header["__metadata__"]["lightning_prune"], parse_constant=lambda text: pytest.fail(text))
    assert info["kwargs"]["drop_rate"] == 0.1
    assert set(io.__all__) == {"load_pruned", "pruned_state_dict", "save_pruned"}
