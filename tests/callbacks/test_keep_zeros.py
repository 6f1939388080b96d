"""KeepZeros: a sparse model trains on, and its zeros stay, wherever they live."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from lightning_prune import KeepZeros, LTPCallback, MRTSCallback, TimmClassifier, load_pruned, save_pruned
from tests.callbacks.methods import equal, fit, keep_all, size
from tests.toy import Toy, loaders, ours_left_on, trainer, zeros


def sparse(path: Path, optimizer: str = "sgd") -> Toy:
    """The toy module, pruned to 80 % by another fit."""
    module, _, _ = fit(path, LTPCallback, options={"target_sparsity": 0.8})
    module.kind = optimizer
    return module


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("average", [False, True])
def test_zeros_stay_and_the_rest_trains(optimizer: str, average: bool, tmp_path: Path) -> None:
    module = sparse(tmp_path / "first", optimizer)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    callbacks = [KeepZeros(), *([EMAWeightAveraging(decay=0.8)] if average else [])]
    trainer(tmp_path, callbacks, max_epochs=3).fit(module, **loaders())
    for name, p in module.named_parameters():
        if p.ndim > 1:
            assert torch.equal(p.detach() == 0, before[name] == 0)
        assert not torch.equal(p.detach(), before[name])
    assert not ours_left_on(module)


def test_without_it_they_fill(tmp_path: Path) -> None:
    module = sparse(tmp_path / "first")
    held = zeros(module)
    trainer(tmp_path, [], max_epochs=1).fit(module, **loaders())
    assert zeros(module) < 0.1 * held


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    start = sparse(tmp_path / "first", "adamw").state_dict()

    def run(ckpt_path: Any = None, callbacks: Any = ()) -> Toy:
        torch.manual_seed(0)
        module = Toy(optimizer="adamw")
        module.load_state_dict(start)
        run = trainer(tmp_path, [KeepZeros(), *callbacks], max_epochs=3, enable_checkpointing=True)
        run.fit(module, **loaders(), ckpt_path=ckpt_path)
        return module

    whole = run(callbacks=[keep_all(tmp_path)])
    for step in (3, 15):
        assert equal(whole, run(ckpt_path=tmp_path / f"step={step}.ckpt"))


def test_a_layer_that_is_zero_throughout_was_initialised_so_and_trains(tmp_path: Path) -> None:
    module = sparse(tmp_path / "first")
    nn.init.zeros_(module.net[8].weight)
    trainer(tmp_path, [KeepZeros()], max_epochs=1).fit(module, **loaders())
    assert int(torch.count_nonzero(module.net[8].weight)) > 0


def test_nothing_to_hold_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="nothing to hold: no weight of the model is zero"):
        trainer(tmp_path, [KeepZeros()], max_epochs=1).fit(Toy(), **loaders())


def test_channels_go_from_a_sparse_model_with_its_zeros_held(tmp_path: Path) -> None:
    module = sparse(tmp_path / "first")
    share = zeros(module) / 1264
    with pytest.warns(UserWarning, match=r"80% of the weights of Sequential are zero.*KeepZeros.*do that first"):
        fit(tmp_path / "free", MRTSCallback, module, max_epochs=5, options={"target_macs": 0.7})
    module = sparse(tmp_path / "first")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module, callback, _ = fit(tmp_path, MRTSCallback, module, [KeepZeros()], options={"target_macs": 0.7})
    assert not [w for w in said if "training will fill them" in str(w.message)]
    assert callback.stage == "pruned"
    assert size(module) < size(Toy())
    weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
    assert zeros(module) / weights > 0.7 * share


def test_a_classifier_warns_when_a_loaded_sparse_network_is_trained_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = TimmClassifier("test_resnet", num_classes=4, in_chans=1)
    for p in module.model.parameters():
        if p.ndim > 1:
            p.data[torch.rand_like(p) < 0.5] = 0
    loaded = load_pruned(save_pruned(module, tmp_path / "sparse.safetensors"))
    again = TimmClassifier("test_resnet", num_classes=4, in_chans=1)
    again.model = loaded
    with pytest.warns(UserWarning, match=r"5\d% of the weights of ResNet are zero, and training will fill them"):
        trainer(tmp_path, [], max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(again, **loaders())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*training will fill them")
        trainer(tmp_path, [KeepZeros()], max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(
            again, **loaders()
        )
