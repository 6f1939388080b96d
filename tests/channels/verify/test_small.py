"""A check on fewer pixels than were given counts only where the network makes the same calls on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.channels import ChannelGraph, prune_channels
from lightning_prune.channels.verify import compare
from lightning_prune.channels.verify.compare import check_plan
from tests.channels.models import randomise
from tests.channels.verify.wrong import broken

SIZE = 96


class Net(nn.Module):
    """Two convolutions, and something at the end that may hang on the number of pixels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.side = kind, SIZE // 8
        self.first, self.norm = nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * self.side**2 if kind == "flat" else 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu())
        if self.kind == "asks" and x.shape[-1] < self.side:
            return self.head(x.mean((2, 3)))
        if self.kind == "one pixel":
            x = nn.functional.avg_pool2d(x, 6)
        x = self.third(x)
        return self.head(x.flatten(1) if self.kind == "flat" else x.mean((2, 3)))


def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Filled with the shapes of what a check runs on."""
    seen: list[tuple[int, ...]] = []
    first = compare.random_like

    def noted(example: Any, dtype: Any) -> Any:
        seen.append(tuple(example.shape))
        return first(example, dtype)

    monkeypatch.setattr(compare, "random_like", noted)
    return seen


@pytest.mark.parametrize(("kind", "taken"), [("free", 64), ("asks", SIZE), ("one pixel", SIZE), ("flat", SIZE)])
def test_fewer_pixels_do_where_the_calls_are_the_same(kind: str, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = randomise(Net(kind)), torch.randn(2, 3, SIZE, SIZE)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    seen = sizes(monkeypatch)
    plan = prune_channels(model, x, score="l1", ratio=0.4).plan
    assert seen[0] == (1, 3, 64, 64)
    assert seen[-1] == ((1, 3, 64, 64) if taken == 64 else tuple(x.shape))
    plan.undo(model)
    model.load_state_dict(state)
    program = ChannelGraph.trace(model, x).program
    assert check_plan(model, plan, x, program=program).dtype == torch.float32
    assert {check_plan(model, wrong, x, program=program).dtype for wrong in broken(plan, False)[::3]} == {torch.float64}
