"""What optimizers keep that has not the parameter's shape: factored moments are sliced, the rest begins anew."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from lightning_prune.channels import prune_channels
from lightning_prune.channels.surgery.cut import state_cut
from lightning_prune.plan.cut import Cut
from tests.channels.branching import train
from tests.channels.models import Branches, random_scores, randomise

EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
A, B = (0, 2, 3), (1, 5)

CASES: list[tuple[tuple[int, ...], tuple[int, ...], str, dict[int, tuple[int, ...]] | None]] = [
    ((8, 6, 3, 3), (8, 6, 3, 3), "exp_avg", {0: A, 1: B}),
    ((8, 6, 3, 3), (8, 6, 3, 1), "row_var", {0: A, 1: B}),
    ((8, 6), (8, 1), "row_var", {0: A}),
    ((8, 6), (1, 6), "col_var", {1: B}),
    ((8, 6, 3, 3), (8, 6, 3), "exp_avg_sq_col", {0: A, 1: B}),
    ((8, 6), (8,), "exp_avg_sq_row", {0: A}),
    ((8, 6), (6,), "exp_avg_sq_col", {0: B}),
    ((8, 8), (8,), "exp_avg_sq_row", {0: A}),
    ((8, 8), (8,), "exp_avg_sq_col", {0: B}),
    ((8, 8, 3, 3), (8, 3, 3), "exp_avg_sq_row", {0: A}),
    ((8, 8, 3, 3), (8, 3, 3), "exp_avg_sq_col", {0: B}),
    ((8, 8), (8,), "moments", None),  # rows or columns
    ((8, 6), (8, 8), "preconditioner", None),
    ((8, 6), (4, 12), "blocks", None),
]


@pytest.mark.parametrize(("full", "shape", "key", "expected"), CASES)
def test_what_is_kept_of_a_state(full: Any, shape: Any, key: str, expected: Any) -> None:
    assert state_cut(Cut(full, {0: A, 1: B}), shape, key) == expected


class Whitening(torch.optim.SGD):
    """Keeps a matrix over each parameter's first dim, as preconditioned optimizers do, and builds it when it is new."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            state = self.state[p]
            if not state:
                state["matrix"] = torch.eye(len(p))
            p.sub_(0.01 * (state["matrix"] @ p.grad.flatten(1)).view_as(p) if p.ndim > 1 else 0.01 * p.grad)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "timm": lambda p: timm.optim.Adafactor(p, lr=0.01),
    "timm big vision": lambda p: timm.optim.AdafactorBigVision(p, lr=0.01, min_dim_size_to_factor=4),
    "whitening": lambda p: Whitening(p, lr=0.01),
}
if hasattr(torch.optim, "Adafactor"):
    OPTIMIZERS["torch"] = lambda p: torch.optim.Adafactor(p, lr=0.01)


def shapes(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> dict[str, Any]:
    return {key: value.shape for key, value in optimizer.state[param].items() if torch.is_tensor(value)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_with_the_state_of_the_smaller_model(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "lightning_prune")
    model: nn.Module = randomise(Branches()).train()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, EXAMPLE)
    prune_channels(model, EXAMPLE, scores=random_scores(model), ratio=0.3, optimizers=[optimizer])
    fresh = copy.deepcopy(model)
    other = OPTIMIZERS[name](fresh.parameters())
    for a, b in ((model, optimizer), (fresh, other)):
        train(a.train(), b, EXAMPLE)
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert p.isfinite().all()
        assert shapes(optimizer, p) == shapes(other, q)
    assert ("begins anew" in caplog.text) == (name == "whitening")
