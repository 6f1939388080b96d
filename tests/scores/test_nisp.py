"""NISP: Inf-FS in closed form, and importance that goes back through weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.scores.nisp import NISP, infinite_selection
from lightning_prune.scoring.backward import read_importance
from tests.scores.networks import score_of, units_of


def moments(features: Tensor) -> Tensor:
    return torch.cat([features.mean(0, keepdim=True), features.T @ features / len(features)])


def test_the_energy_is_the_sum_of_all_paths() -> None:
    x = torch.randn(200, 5, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    x[:, 3] = x[:, 0]
    spread = x.std(0, unbiased=False) / x.std(0, unbiased=False).max()
    paths = 0.5 * torch.maximum(spread[:, None], spread) + 0.5 * (1 - torch.corrcoef(x.T).abs())
    paths = 0.9 * paths / torch.linalg.eigvalsh(paths).abs().max()
    wanted, power = torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    for _ in range(400):  # 0.9^400 is nothing
        power = power @ paths
        wanted += power.sum(1)
    torch.testing.assert_close(infinite_selection(moments(x)), wanted, rtol=1e-8, atol=1e-8)


def test_what_never_varies_is_worth_least() -> None:
    x = torch.randn(200, 4, dtype=torch.float64)
    x[:, 2] = 7.0
    assert int(infinite_selection(moments(x)).argmin()) == 2
    assert infinite_selection(moments(torch.ones(9, 3, dtype=torch.float64))).isfinite().all()


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 4), (1, 6)),
    "convolution": (nn.Conv2d(6, 4, (3, 2)), (1, 6, 3, 2)),
    "grouped": (nn.Conv1d(6, 4, 3, groups=2), (1, 6, 3)),
    "transposed": (nn.ConvTranspose2d(6, 4, 2, groups=2), (1, 6, 1, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_importance_goes_through_magnitudes(name: str) -> None:
    """By autograd on the layer with |W| in place of W, at one position."""
    layer, shape = LAYERS[name]
    outputs = torch.rand(4, dtype=torch.float64)
    x = torch.ones(shape, requires_grad=True)
    weights = {"weight": layer.weight.abs(), "bias": layer.bias}
    y = torch.func.functional_call(layer, weights, (x,)).flatten(1).view(4, -1).sum(1)
    (gradient,) = torch.autograd.grad((y.double() * outputs).sum(), x)
    torch.testing.assert_close(
        read_importance(layer, outputs).float(), gradient[0].flatten(1).sum(1) if gradient.ndim > 2 else gradient[0]
    )


class Stream(nn.Module):
    """A residual stream of three channels, around one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (
            nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 3), nn.Linear(3, 2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.outer(self.inner(x).relu()))


def test_a_shortcut_hands_importance_on() -> None:
    torch.manual_seed(0)
    net, x = Stream().double().eval(), torch.randn(64, 4, dtype=torch.float64)
    units = units_of(net, x[:2])
    last = net.stem(x) + net.outer(net.inner(net.stem(x)).relu())
    end = infinite_selection(moments(last.detach()))
    hidden = net.outer.weight.detach().abs().T @ end
    stream = end + net.inner.weight.detach().abs().T @ hidden
    got = score_of(units, NISP(), [x])
    for name, wanted in (("stem", stream), ("inner", hidden)):
        torch.testing.assert_close(got[units.graph.axes[f"{name}.weight"][0]], wanted / wanted.mean())


def test_channels_that_no_layer_reads_stay() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    units = units_of(net, torch.zeros(2, 4))
    score = score_of(units, NISP(), [torch.randn(8, 4)])
    hidden = units.graph.axes["2.weight"][0]
    assert bool(score[hidden].isfinite().all())
    assert float(score[hidden].mean()) == pytest.approx(1)
    assert int((score == math.inf).sum()) == units.size - 5
