"""Factorised networks in files and checkpoints, and with channels removed too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_prune import (
    CompactCheckpoint,
    PruningPlan,
    factorize,
    load_pruned,
    plan_of,
    prune_channels,
    save_pruned,
    sparsity_report,
    take_shapes,
)
from lightning_prune.errors import PrunedFileError
from tests.factors.networks import X, factorized, network, vit
from tests.toy import Toy


def test_files_bring_the_two_layers_back(tmp_path: Path) -> None:
    model, x = vit(), torch.randn(2, 3, 16, 16)
    factorize(model, energy=0.6)
    output = model(x)
    loaded = load_pruned(save_pruned(model, tmp_path / "vit.safetensors")).eval()
    assert torch.equal(loaded(x), output)
    assert plan_of(loaded) == plan_of(model)
    assert torch.equal(load_pruned(tmp_path / "vit.safetensors", vit()).eval()(x), output)
    twin = load_pruned(save_pruned(factorized(network()), tmp_path / "own.safetensors"), network()).eval()
    assert torch.equal(twin(X), factorized(network())(X))
    other = vit()
    factorize(other, energy=0.4)
    with pytest.raises(PrunedFileError, match="compact by another pruning plan"):
        load_pruned(tmp_path / "vit.safetensors", other)


def test_checkpoints_bring_the_two_layers_back() -> None:
    class Module(CompactCheckpoint, Toy):
        pass

    module, checkpoint = Module(), dict[str, Any]()
    factorize(module.net, target_params=0.5)
    module.on_save_checkpoint(checkpoint)
    checkpoint["state_dict"] = module.state_dict()
    x = torch.randn(2, 1, 8, 8)
    for other in (Module(), factorized(Module(), 1)):  # a dense one, and one of another plan
        other.on_load_checkpoint(checkpoint)
        other.load_state_dict(checkpoint["state_dict"])
        assert torch.equal(other.eval()(x), module.eval()(x))
    take_shapes(other, {})
    other.load_state_dict(Toy().state_dict())  # dense again


@pytest.mark.parametrize("first", ["factors", "channels"])
def test_with_channels_removed_before_or_after(first: str, tmp_path: Path) -> None:
    model, x = vit(), torch.randn(2, 3, 16, 16)

    def cut() -> None:
        prune_channels(model, x, channels=0.5, score="l2")

    if first == "channels":
        cut()
    factorize(model, ranks={"blocks.0.mlp.fc1": 5, "blocks.0.attn.qkv": 4})
    if first == "factors":
        cut()
        ranks = [model.get_submodule(f"blocks.0.{path}").rank for path in ("mlp.fc1", "attn.qkv")]
        assert ranks < [5, 4]  # channels between the two can go as well
    output, plan = model(x), plan_of(model)
    loaded = load_pruned(save_pruned(model, tmp_path / "both.safetensors")).eval()
    assert torch.equal(loaded(x), output)
    assert PruningPlan.from_json(plan.to_json()) == plan
    again = vit()
    plan.apply(again)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    report = sparsity_report(model)
    dense = sparsity_report(vit())
    assert report.prunable + report.removed == dense.prunable
    plan.undo(model)
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in vit().state_dict().items()}
    torch.testing.assert_close(model(x), output, rtol=1e-3, atol=1e-4)
