"""Channels first, weights then, in one fit: both targets are met, and every promise of one callback holds for two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_prune import LTPCallback, load_pruned, plan_of, save_pruned, sparsity_report
from tests.callbacks.methods import METHODS, equal, fit, keep_all, macs
from tests.toy import Toy, network, ours_left_on, zeros


def both(path: Path, method: str, **options: Any) -> tuple[Toy, LTPCallback]:
    """Channels go after batch 16, weights between 16 and 32, of 48."""
    weights = LTPCallback(target_sparsity=0.6, warmup=2, sparsify=2, recalibrate_batches=2)
    callbacks = [weights, *options.pop("callbacks", ())]
    first = {"target_macs": 0.5, "sparsify": 1}
    module, _, _ = fit(path, METHODS[method], options=first, callbacks=callbacks, **options)
    return module, weights


@pytest.mark.parametrize("method", ["mrts", "fpgm"])
def test_both_targets_are_met_and_one_file_holds_the_result(method: str, tmp_path: Path) -> None:
    module, _ = both(tmp_path, method)
    assert plan_of(module.net) is not None
    assert macs(module.net) <= 0.5 * macs(network())
    report = sparsity_report(module.net)
    assert abs(report.zeros - 0.6 * report.prunable) <= 1
    assert zeros(module) == report.zeros
    assert not ours_left_on(module)
    loaded = load_pruned(save_pruned(module.net, tmp_path / "both.safetensors"), network(1))
    assert equal(loaded, module.net)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, _ = both(tmp_path / "a", "mrts", callbacks=[keep_all(tmp_path / "a", every=4)])
    # in the first's sparsify phase, at the removal, in the second's sparsify phase, in finetune
    for step in (12, 16, 20, 36):
        (checkpoint,) = (tmp_path / "a").glob(f"step={step}.ckpt")
        resumed, _ = both(tmp_path / str(step), "mrts", ckpt_path=checkpoint)
        assert equal(whole, resumed), step


def test_a_layer_that_was_emptied_does_not_hinder_a_resumed_run(tmp_path: Path) -> None:
    """Between the two removals the second callback still knows the names of the dense network."""
    module = Toy()
    weights = LTPCallback(target_sparsity=0.6, warmup=3, sparsify=1)
    weights.root = module
    weights.choose(lambda p: True)
    state = weights.state() | {"stage": "dense"}
    with torch.no_grad():
        module.net[3].weight.data = module.net[3].weight.data[:0]
    weights.reset()
    weights.restore(module, state)
    assert weights.stage == "dense"


def test_a_fast_dev_run_gives_each_a_batch(tmp_path: Path) -> None:
    module, weights = both(tmp_path, "mrts", fast_dev_run=3)
    assert plan_of(module.net) is not None
    assert weights.stage == "pruned"
    assert zeros(module) > 0
