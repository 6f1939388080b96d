"""Files of models with removed branches: they come back, and those made to do harm do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.channels.surgery.empty import branch_names, is_empty_layer
from lightning_prune.io import load_pruned, save_pruned
from lightning_prune.plan.record import plan_of
from tests.channels.branching import prune_whole
from tests.io.tampering import put_together, take_apart
from tests.io.test_compact_hostile import Tamper, assert_refused, change, cut


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = timm.create_model("resnet20_cifar", width=4)
    keep: dict[str, Any] = {"layer1.0.bn1": [], "layer2.1.bn1": [1, 2, 5]}
    prune_whole(model, torch.randn(2, 3, 16, 16), keep=keep, verify=False, form="eager")
    return save_pruned(model, tmp_path_factory.mktemp("good") / "m.safetensors")


def test_it_comes_back(good: Path) -> None:
    for model in (load_pruned(good), load_pruned(good, timm.create_model("resnet20_cifar", width=4))):
        assert branch_names(plan_of(model)) == ("layer1.0",)
        assert is_empty_layer(model.layer1[0].conv2)
        assert model(torch.randn(2, 3, 16, 16)).isfinite().all()


PATHS = ["layer1.0.bn1", "layer1.0.conv1", "layer1.0.conv2"]
TAMPERED: list[tuple[Tamper, str]] = [
    (lambda plan: plan.pop("empty"), r"would empty dim 0 of layer1\.0\.conv1\.weight"),
    (change(("empty",), PATHS[:2]), r"would empty dim 1 of layer1\.0\.conv2\.weight"),
    (change(("empty",), [*PATHS, "conv1"]), "'conv1' as a layer without channels, and leaves it some"),
    (change(("empty",), [*PATHS, "x" * 10**5]), "'xxx.*, which CifarResNet does not have"),
    (change(("empty",), [*PATHS, "x\x00"]), "does not have"),
    (change(("empty",), "layer1.0"), "empty is not a list"),
    (change(("empty",), [*PATHS, PATHS[0]]), "each once"),
    (change(("empty",), [*PATHS, ["layer1"]]), "expected module paths"),
    (change(("form",), "graph"), "from a rewritten graph"),
    (cut("layer1.1.conv1.weight", [4, 4, 3, 3], []), r"would empty dim 0 of layer1\.1\.conv1\.weight"),
    (lambda plan: plan["tensors"].pop("layer1.0.bn1.running_var"), r"leaves channels of layer1\.0\.bn1\.running_var"),
]


@pytest.mark.parametrize(("tamper", "match"), TAMPERED, ids=[str(i) for i in range(len(TAMPERED))])
def test_a_plan_that_empties_what_it_may_not_is_refused(good: Path, tmp_path: Path, tamper: Tamper, match: str) -> None:
    header, info, data = take_apart(good)
    original = json.dumps(info)
    tamper(info["plans"][""])
    assert json.dumps(info) != original
    assert_refused(put_together(tmp_path / "lie", header, info, data), match)
