"""A name and arguments made to do harm: refused before memory is taken, and nothing else runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.io import PrunedFileError, load_pruned, pruned_state_dict, save_pruned
from lightning_prune.io.rebuild import first_difference
from tests.io.tampering import put_together, take_apart
from tests.memory import memory_below

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
