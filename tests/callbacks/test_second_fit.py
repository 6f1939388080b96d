"""A second fit by the same Trainer with more epochs, and a training that has diverged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_prune.errors import DivergenceError
from tests.callbacks.methods import METHODS, PHASES, check_budget, target
from tests.toy import Toy, loaders, trainer


@pytest.mark.parametrize("method", ["ltp", "oneshot", "mrts", "fpgm"])
def test_the_same_trainer_with_more_epochs_goes_on_with_finetune(method: str, tmp_path: Path) -> None:
    module, callback = Toy(), METHODS[method](**PHASES | target(method))
    run = trainer(tmp_path, [callback], max_epochs=5)
    run.fit(module, **loaders())
    check_budget(method, module)
    seen, before = callback.seen, {n: p.detach().clone() for n, p in module.named_parameters()}
    run.fit_loop.max_epochs = 7
    run.fit(module, **loaders())
    assert callback.stage == "pruned"
    assert callback.phases.at(callback.seen) == "finetune"
    assert callback.seen == seen + 16
    check_budget(method, module)
    for name, p in module.named_parameters():
        assert not torch.equal(p, before[name]) or name.endswith("bias")
        assert p.ndim == 1 or torch.equal(p == 0, before[name] == 0)


@pytest.mark.parametrize("name", ["ltp", "mrts"])
def test_another_module_in_the_same_trainer_is_pruned_in_what_is_left(name: str, tmp_path: Path) -> None:
    callback = METHODS[name](**PHASES | target(name) | {"warmup": 0.25, "sparsify": 0.5})
    run = trainer(tmp_path, [callback], max_epochs=2)
    run.fit(Toy(), **loaders())
    run.fit_loop.max_epochs = 6
    module = Toy()
    run.fit(module, **loaders())
    assert callback.seen == 32
    assert (callback.phases.begin, callback.phases.prune) == (8, 24)
    check_budget(name, module)


class Diverges(Toy):
    """Its loss is NaN from a batch of the sparsify phase on."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss: Any = super().training_step(batch, batch_idx)
        return loss * torch.nan if self.global_step >= 17 else loss


@pytest.mark.parametrize("name", ["ltp", "oneshot", "mrts", "fpgm"])
def test_a_loss_that_is_nan_is_told_in_one_wording(name: str, tmp_path: Path) -> None:
    callback = METHODS[name](**PHASES | target(name))
    message = r"The training has diverged: after \d+ batches .* infinite \((net\.)?0\.weight.* Lower the learning rate"
    with pytest.raises(DivergenceError, match=message):
        trainer(tmp_path, [callback]).fit(Diverges(), **loaders())
