"""Channels removed by MRTS, then weights zeroed by LTP in what is left: one file, one folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lightning_prune.zoo.models  # noqa: F401  registers the CIFAR networks
from lightning_prune import LTPCallback, MRTSCallback, TimmClassifier, sparsity_report
from lightning_prune.io import load_pruned, pruned_info, save_pretrained, save_pruned
from lightning_prune.io.format.bitmask import bits
from lightning_prune.plan.record import plan_of
from tests.toy import loaders, trainer


def test_ltp_on_top_of_mrts_in_one_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = TimmClassifier("resnet20_cifar", num_classes=4, in_chans=1, model_kwargs={"width": 4})
    dense = sparsity_report(module).prunable
    phases = {"warmup": 1, "sparsify": 1, "recalibrate_batches": 1}
    sizes = {"dense": save_pruned(module, tmp_path / "dense.safetensors").stat().st_size}
    for name, callback in (
        ("compact", MRTSCallback(target_macs=0.6, **phases)),
        ("both", LTPCallback(target_sparsity=0.8, **phases)),
    ):
        trainer(tmp_path, [callback], max_epochs=3, limit_val_batches=0).fit(module, **loaders())
        sizes[name] = save_pruned(module, tmp_path / f"{name}.safetensors").stat().st_size
    assert sizes["dense"] > 1.2 * sizes["compact"] > 2 * sizes["both"]

    report, images = sparsity_report(module), torch.randn(3, 1, 8, 8)
    assert report.sparsity == pytest.approx(0.8, abs=0.001)
    assert 0 < report.removed == dense - report.prunable
    module.eval()
    for path in (tmp_path / "both.safetensors", save_pretrained(module, tmp_path / "folder")):
        loaded = load_pruned(path).eval()
        assert bits(loaded(images)).equal(bits(module(images)))
        assert sparsity_report(loaded) == sparsity_report(module.model)
        assert plan_of(loaded) == plan_of(module.model)
        info = pruned_info(path)
        assert info["compact"]
        assert info["sparsity"]["removed"] == report.removed
        assert info["sparsity"]["zeros"] == report.zeros
    fresh = TimmClassifier("resnet20_cifar", num_classes=4, in_chans=1, model_kwargs={"width": 4})
    assert load_pruned(tmp_path / "both.safetensors", fresh) is fresh
    assert bits(fresh.eval()(images)).equal(bits(module(images)))
