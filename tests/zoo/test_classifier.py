"""TimmClassifier's options: what the optimizer gets, the learning rate of every step, the memory format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lightning_prune import LTPCallback, MRTSCallback, TimmClassifier, load_pruned, save_pruned
from lightning_prune.functional.schedules import piecewise
from tests.toy import loaders

TINY: dict[str, Any] = {"model_name": "resnet20_cifar", "num_classes": 4, "in_chans": 1, "model_kwargs": {"width": 4}}


class Rates(Callback):
    """Notes the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def fit(path: Path, module: TimmClassifier, *callbacks: Callback, epochs: int = 3, **kwargs: Any) -> None:
    Trainer(
        max_epochs=epochs, callbacks=list(callbacks), default_root_dir=path, logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **kwargs,
    ).fit(module, **loaders(n=32))  # fmt: skip


def test_piecewise_holds_the_last_value_reached() -> None:
    steps = {2: 0.2, 4: 0.5}
    assert [piecewise(at, 1.0, steps) for at in (0, 1.99, 2, 3.9, 4, 9)] == [1.0, 1.0, 0.2, 0.2, 0.5, 0.5]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_learning_rate_changes_with_the_epochs(tmp_path: Path, accumulate: int) -> None:
    rates = Rates()
    module = TimmClassifier(**TINY, lr=0.1, schedule="steps", lr_steps={1: 0.02, 2: 0.05})
    fit(tmp_path, module, rates, accumulate_grad_batches=accumulate)
    steps = math.ceil(4 / accumulate)
    assert rates.seen == pytest.approx([0.1] * steps + [0.02] * steps + [0.05] * steps)


def test_steps_from_the_first_epoch_and_a_warm_up(tmp_path: Path) -> None:
    rates = Rates()
    module = TimmClassifier(**TINY, lr=0.1, schedule="steps", lr_steps={0: 0.01, 1: 0.1}, warmup_steps=2)
    fit(tmp_path, module, rates, epochs=2)
    assert rates.seen == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01] + [0.1] * 4)


def test_the_cosine_ends_where_it_is_told(tmp_path: Path) -> None:
    rates = Rates()
    fit(tmp_path, TimmClassifier(**TINY, lr=0.1, lr_floor=0.5), rates, epochs=2)
    expected = [0.05 + 0.05 * 0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert rates.seen == pytest.approx(expected)


@pytest.mark.parametrize(
    "options", [{"schedule": "steps"}, {"lr_steps": {1: 0.1}}, {"schedule": "steps", "lr_steps": {}}]
)
def test_a_schedule_without_its_steps_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="schedule 'steps' needs lr_steps"):
        TimmClassifier(**TINY, **options)


def decays(**options: Any) -> tuple[dict[float, int], Any]:
    """How many parameters have which weight decay, and the optimizer."""
    module = TimmClassifier(**TINY, schedule="constant", weight_decay=0.3, **options)
    optimizer = module.configure_optimizers()["optimizer"]
    found: dict[float, int] = {}
    for group in optimizer.param_groups:
        found[group["weight_decay"]] = found.get(group["weight_decay"], 0) + len(group["params"])
    return found, optimizer


def test_biases_and_norms_have_no_decay_unless_all_do() -> None:
    weights = 19 + 2 + 1
    norms = 2 * (19 + 2) + 1  # scale and bias of each, and the classifier's bias
    for name in ("sgd", "adamw"):
        assert decays(optimizer=name)[0] == {0.3: weights, 0.0: norms}
        assert decays(optimizer=name, decay_all=True)[0] == {0.3: weights + norms}


def test_nesterov_can_be_turned_off() -> None:
    found = [decays(optimizer="sgd", **o)[1].defaults["nesterov"] for o in ({}, {"nesterov": False}, {"momentum": 0.0})]
    assert found == [True, False, False]


def test_all_scale_factors_start_where_they_are_told() -> None:
    for value, found in ((None, {1.0}), (0.5, {0.5})):
        module = TimmClassifier(**TINY, scale_init=value)
        scales = {v for m in module.modules() if isinstance(m, nn.BatchNorm2d) for v in m.weight.tolist()}
        assert scales == found


def four_dims(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.ndim == 4]


@pytest.mark.parametrize("callback", [LTPCallback(sparsify=1), MRTSCallback(warmup=0, sparsify=1)], ids=["LTP", "MRTS"])
def test_channels_last_computes_the_same_and_is_pruned_and_saved(tmp_path: Path, callback: Callback) -> None:
    torch.manual_seed(0)
    usual = TimmClassifier(**TINY)
    module = TimmClassifier(**TINY, channels_last=True)
    module.load_state_dict(usual.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in four_dims(module))
    torch.testing.assert_close(module.eval()(x), usual.eval()(x))

    fit(tmp_path, module, callback, epochs=2)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in four_dims(module))
    again = load_pruned(save_pruned(module, tmp_path / "pruned.safetensors"))
    torch.testing.assert_close(again.eval()(x), module.eval()(x))
