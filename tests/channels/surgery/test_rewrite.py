"""The rewritten graph: which methods it stands for, and how often it traces them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.channels import prune_channels
from lightning_prune.channels.surgery import retrace
from tests.channels.models import conv_bn, random_scores, randomise, silenced

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Trunk(nn.Module):
    """Features and a head that changes them in place, as timm's models are built."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.stem = nn.Sequential(conv_bn(3, 8), nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.factor != 1:
            x = x * self.factor
        return self.head(self.forward_features(x).relu_().mean((2, 3)))


@pytest.mark.parametrize(("factor", "exports"), [(1.0, 2), (2.0, 4)])
def test_features_shrink_and_share_a_trace_if_forward_calls_them_on_its_input(
    factor: float, exports: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    export = retrace.export
    monkeypatch.setattr(retrace, "export", lambda *a, **k: calls.append(k["training"]) or export(*a, **k))
    dense = randomise(Trunk(factor)).double()
    small = copy.deepcopy(dense)
    x = EXAMPLE.double()
    result = prune_channels(small, x, scores=random_scores(small), ratio=0.4, form="graph")
    assert sorted(calls) == [False] * (exports // 2) + [True] * (exports // 2)
    assert "forward_features" not in vars(small)
    reference = silenced(copy.deepcopy(dense), result.plan)
    kept = list(result.plan.cuts["stem.2.weight"].kept[0])
    batch = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(small(batch), reference(batch))
    torch.testing.assert_close(small.forward_features(batch), reference.forward_features(batch)[:, kept])
    for model in (small, reference):
        model.train()
        model.forward_features(batch)
    torch.testing.assert_close(small.stem[2].running_mean, reference.stem[2].running_mean[kept])
    assert int(small.stem[2].num_batches_tracked) == 1


def test_keyword_inputs_keep_a_free_batch_size() -> None:
    small = randomise(Trunk())
    prune_channels(small, {"x": EXAMPLE}, scores=random_scores(small), ratio=0.4, form="graph")
    assert small(x=EXAMPLE[:1]).shape == (1, 5)
    assert small(x=torch.cat([EXAMPLE, EXAMPLE])).shape == (4, 5)


class Heads(nn.Module):
    """A view to the batch times the heads, of one dim each, as PyTorch's attention makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens, batch = x.shape[1], x.shape[0]
        heads = self.first(x).transpose(0, 1).contiguous().view(tokens, batch * 4, 1).transpose(0, 1)
        return self.last((heads - heads.mean(1, keepdim=True)).view(batch, 4, tokens).transpose(1, 2))


def test_a_view_to_the_batch_times_the_heads_is_rewritten() -> None:
    torch.manual_seed(0)
    model, x = Heads(), torch.randn(2, 5, 6)
    dense = copy.deepcopy(model)
    done = prune_channels(model, x, keep={"first": [0, 2, 3]}, form="graph")
    assert done.plan.cuts["last.weight"].kept == {1: (0, 2, 3)}
    batch = torch.randn(7, 5, 6)
    torch.testing.assert_close(model(batch), silenced(dense, done.plan)(batch))
