"""Files that were written before there was format 3 load as they did, and are saved anew in today's."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune.channels import prune_channels
from lightning_prune.io import load_pruned, pruned_info, pruned_state_dict, save_pruned
from lightning_prune.plan.record import plan_of
from tests.io.models import by_rule, same_bits
from tests.io.tampering import OLD, Small


def saved(number: int) -> nn.Module:
    """What was saved, built anew."""
    if number == 1:
        return by_rule(timm.create_model("resnet20_cifar", width=2))
    model = timm.create_model("resnet20_cifar", width=4)
    keep = {"layer1.0.bn1": [0, 3], "layer2.1.bn1": [1, 2, 5]}
    prune_channels(model, torch.zeros(2, 3, 16, 16), keep=keep, verify=False, form="eager")
    return by_rule(model)


@pytest.mark.parametrize("number", [1, 2])
def test_an_old_file_loads(tmp_path: Path, number: int) -> None:
    path, model = OLD / f"format{number}.safetensors", saved(number)
    loaded = load_pruned(path)
    assert same_bits(loaded.state_dict(), model.state_dict())
    info, plan = pruned_info(path), plan_of(model)
    assert (info["format"], info["compact"], info["values"]) == (number, number == 2, None)
    assert (plan is None) == (number == 1)
    assert plan_of(loaded) == plan
    again = save_pruned(loaded, tmp_path / "again.safetensors")
    assert pruned_info(again)["format"] == 3
    assert same_bits(load_pruned(again).state_dict(), model.state_dict())
    assert again.stat().st_size < 0.5 * path.stat().st_size  # small tensors, for which old headers were long


def test_an_old_file_without_a_name_loads() -> None:
    assert same_bits(pruned_state_dict(OLD / "format1_small.safetensors"), Small().state_dict())
