"""Fits that are refused before they prune wrongly: each message names the value and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn import functional as F

from lightning_prune import LTPCallback, MagnitudeCallback, MRTSCallback
from lightning_prune.errors import BudgetError
from tests.callbacks.methods import METHODS, SCALES, fit, run, target
from tests.toy import Toy, ours_left_on, trainer

PATTERNS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"include": ["blocks.*"]}, ValueError, r"include pattern 'blocks.\*' matches no prunable weight.*like 'net"),
    ({"exclude": ["nett.0"]}, ValueError, r"exclude pattern 'nett.0' matches no prunable weight.*'net.0"),
    (
        {"target_sparsity": 0.99, "min_keep": 0.05},
        BudgetError,
        r"min_keep per layer alone keeps.*net.3.weight \(58 of 1152\)",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), PATTERNS, ids=lambda x: str(x)[:40])
def test_layers_and_budgets_that_cannot_be(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    module = Toy()
    before = {k: v.clone() for k, v in module.named_parameters()}
    with pytest.raises(error, match=message):
        fit(tmp_path, LTPCallback, module, options=options)
    assert not ours_left_on(module)
    assert all(torch.equal(before[k], v) for k, v in module.named_parameters())


TURN = r"\w+ and \w+ cannot prune in the same fit: .* One that removes channels may share a fit"
PAIRS = [
    ("ltp", "magnitude", TURN),
    ("magnitude", "toy score", TURN),
    ("fpgm", "slimming", TURN),
    ("ltp", "mrts", r"in this order: .* List MRTSCallback before LTPCallback"),
    ("fpgm", "ltp", "LTPCallback would begin after batch 0, but channels are removed after batch 32"),
]


@pytest.mark.parametrize(("first", "second", "message"), PAIRS)
def test_two_callbacks_in_one_fit(first: str, second: str, message: str, tmp_path: Path) -> None:
    module, other = Toy(), METHODS[second](**target(second))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, first, module, callbacks=[other])
    assert not ours_left_on(module)


class Raw(Toy):
    """Steps the raw torch optimizer, so Lightning's hooks never run."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        F.cross_entropy(self(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("sparsify", [3, 0])
def test_raw_optimizer(sparsify: int, tmp_path: Path) -> None:
    module = Raw()
    with pytest.raises(RuntimeError, match=r"SGD.step\(\) ran without Lightning's hooks.*self.optimizers\(\)"):
        fit(tmp_path, MagnitudeCallback, module, options={"warmup": 0, "sparsify": sparsify})
    assert not ours_left_on(module)


class Writes(lightning.Callback):
    """Moves weights beside the optimizer."""

    def __init__(self, by: float) -> None:
        self.by = by

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if pl_module.net[0].weight.eq(0).any():  # after the prune
            pl_module.net[0].weight.data.add_(self.by)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (1e-3, r"Pruned weights came back in net.0.weight .*writes to them"),
        (float("nan"), "The training has diverged after the prune"),
    ],
)
def test_something_else_than_an_optimizer_that_moves_pruned_weights(by: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=message):
        fit(tmp_path, LTPCallback, callbacks=[Writes(by)])


@pytest.mark.parametrize("name", METHODS)
def test_sharding_strategies(name: str) -> None:
    class Fake:
        strategy = object.__new__(FSDPStrategy)

    callback = METHODS[name]()
    message = rf"{type(callback).__name__} does not support FSDPStrategy.*strategy='ddp'"
    with pytest.raises(NotImplementedError, match=message):
        callback.setup(Fake(), Toy(), "fit")  # type: ignore[arg-type]


def test_processes_that_only_return_weights(tmp_path: Path) -> None:
    callback = MRTSCallback()
    run = trainer(tmp_path, [callback], devices=2, strategy="ddp_spawn")
    with pytest.raises(NotImplementedError, match=r"could not come back from them. Use strategy='ddp'"):
        callback.setup(run, Toy(), "fit")


@pytest.mark.parametrize("name", SCALES)
def test_no_batchnorm_points_to_other_methods(name: str, tmp_path: Path) -> None:
    module = Toy()
    module.net[1] = module.net[4] = nn.Identity()
    with pytest.raises(ValueError, match=r"has none.*scales='auto'.*FPGMCallback, LTPCallback"):
        fit(tmp_path, SCALES[name], module, options={"scales": "batchnorm"})
