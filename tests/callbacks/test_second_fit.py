"""A second fit by the same Trainer with more epochs, and a training that has diverged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune.callbacks.guard import check_diverged
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


def test_what_another_rank_has_lost_is_told_on_this_one() -> None:
    network, reduced = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), list[torch.Tensor]()

    def reduce(flags: torch.Tensor, reduce_op: str) -> torch.Tensor:
        reduced.append(flags)
        return flags + torch.tensor([0.0, 0.0, 1.0, 0.0])  # the other rank's

    ranks: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce=reduce, root_device=torch.device("cpu")))
    with pytest.raises(DivergenceError, match=r"after 7 batches 1 parameters are NaN or infinite \(1\.weight, "):
        check_diverged(network.named_parameters(), "It", 7, trainer=ranks)
    assert reduced[0].tolist() == [0.0] * 4
    check_diverged(network.named_parameters(), "It", 7)
    network[0].bias.data[1] = torch.inf
    with pytest.raises(DivergenceError, match=r"1 parameters .* \(0\.bias, "):
        check_diverged(network.named_parameters(), "It", 7)
