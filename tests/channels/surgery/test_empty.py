"""Stand-ins of layers that have no channels: what the layer itself would give."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn

from lightning_prune.channels import PlanError, PruningPlan
from lightning_prune.channels.surgery.empty import empty_layers, fill, is_empty_layer, may_be_empty
from lightning_prune.plan.cut import Cut
from tests.channels.models import Chain

CONVOLUTIONS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "plain": (nn.Conv2d, {"kernel_size": 3}, (9, 12)),
    "stride": (nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}, (9, 12)),
    "uneven": (nn.Conv2d, {"kernel_size": (1, 5), "stride": (3, 2), "padding": (0, 2), "dilation": (1, 2)}, (9, 13)),
    "reflect": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, (6, 7)),
    "same": (nn.Conv2d, {"kernel_size": 4, "padding": "same", "dilation": 2}, (9, 12)),
    "valid": (nn.Conv2d, {"kernel_size": 2, "padding": "valid", "stride": 2}, (9, 12)),
    "timm's same, odd": (Conv2dSame, {"kernel_size": 3, "stride": 2}, (9, 12)),
    "timm's same, dilated": (Conv2dSame, {"kernel_size": 5, "stride": 2, "dilation": 2}, (11, 8)),
    "1d": (nn.Conv1d, {"kernel_size": 3, "stride": 2}, (11,)),
    "3d": (nn.Conv3d, {"kernel_size": 3, "stride": 2, "padding": 1}, (5, 6, 7)),
}


def emptied(module: nn.Module, dim: int, bias: bool = True) -> nn.Module:
    """The module without output (dim 0) or input (dim 1) channels, run by its stand-in."""
    outer = nn.Sequential(copy.deepcopy(module))
    for name, p in outer[0].named_parameters():
        if dim == 0 or name == "weight":
            p.data = p.data.narrow(dim, 0, 0)
    for b in outer[0].buffers():
        b.data = b.data[:0] if b.ndim else b.data
    empty_layers(outer, ["0"])
    return outer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_without_channels_gives_what_it_would_give(name: str, bias: bool) -> None:
    kind, options, sizes = CONVOLUTIONS[name]
    real = kind(3, 4, bias=bias, **options)
    x = torch.randn(2, 3, *sizes)
    expected = real(x)
    nothing = emptied(real, 0)(x)
    assert nothing.shape == (2, 0, *expected.shape[2:])
    with torch.no_grad():
        real.weight.zero_()
    constant = emptied(real, 1)(x[:, :0])
    assert torch.equal(constant, real(x))
    assert constant.dtype == expected.dtype
    constant.relu_()  # no two elements share their memory
    assert emptied(real, 0)(x[:, :0]).shape == nothing.shape


def test_gradients_reach_the_bias_and_what_is_left_below() -> None:
    conv = emptied(nn.Conv2d(3, 4, 3), 1)
    conv(torch.randn(2, 0, 5, 5)).sum().backward()
    assert torch.equal(conv[0].bias.grad, torch.full((4,), 18.0))
    below = nn.Conv2d(3, 4, 1)
    (emptied(nn.Conv2d(4, 3, 1), 0)(below(torch.randn(2, 3, 5, 5))).sum() + below.weight.sum()).backward()
    assert below.weight.grad.shape == below.weight.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_gives_the_dtype_of_the_layer_itself(dtype: torch.dtype) -> None:
    real, x = nn.Conv2d(3, 4, 3).to(dtype), torch.randn(2, 3, 5, 5, dtype=dtype)
    for enabled in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert emptied(real, 1)(x[:, :0]).dtype == emptied(real, 0)(x).dtype == real(x).dtype


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_a_norm_without_channels_gives_none(kind: type[nn.Module]) -> None:
    norm, x = emptied(kind(4), 0), torch.randn(2, 0, 3, 3)
    for training in (True, False):
        assert norm.train(training)(x).shape == x.shape


def test_copies_pickles_and_the_way_back() -> None:
    norm, conv = emptied(BatchNormAct2d(4), 0), emptied(Conv2dSame(3, 4, 3, stride=2), 1)
    x = torch.randn(2, 0, 5, 5)
    for module in (norm, conv):
        kind = type(module[0])
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.copy(module)):
            assert type(other[0]) is kind
            assert torch.equal(other(x), module(x))
        assert module.state_dict().keys() == copy.deepcopy(module).state_dict().keys()
        fill(module, ["0"])
        assert not is_empty_layer(module[0])
        assert type(module[0]) in (BatchNormAct2d, Conv2dSame)


class Odd(nn.Conv2d):
    """Pads in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (3, 3, 3, 3)))


class Standardised(nn.Conv2d):
    """Changes its weight, not the sizes."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def test_only_known_layers_may_be_empty() -> None:
    fine = [nn.Linear(3, 4), nn.BatchNorm1d(3), nn.Conv2d(3, 4, 3), Conv2dSame(3, 4, 3), Standardised(3, 4, 3)]
    assert all(may_be_empty(m) for m in fine)
    wrong = [Odd(3, 4, 3), nn.ConvTranspose2d(3, 4, 3), nn.LayerNorm(3), nn.PReLU(3), nn.Embedding(3, 4)]
    assert not any(may_be_empty(m) for m in wrong)


ROWS = {
    "features.0.weight": Cut((8, 3, 3, 3), {0: ()}),
    "features.0.bias": Cut((8,), {0: ()}),
    **{f"features.1.{n}": Cut((8,), {0: ()}) for n in ("weight", "bias", "running_mean", "running_var")},
    "features.3.weight": Cut((12, 8, 3, 3), {1: ()}),
}
PATHS = ("features.0", "features.1", "features.3")
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a layer that is not named": ({"empty": PATHS[:2]}, r"would empty dim 1 of features\.3\.weight"),
    "no such layer": ({"empty": (*PATHS, "features.99")}, r"'features\.99', which Chain does not have"),
    "a layer that keeps channels": ({"empty": (*PATHS, "features.4")}, r"'features\.4' as a layer without"),
    "half a layer": (
        {"cuts": {k: v for k, v in ROWS.items() if k != "features.1.running_var"}},
        r"empties features\.1, and leaves channels of features\.1\.running_var",
    ),
    "a kernel dim": (
        {"cuts": {**ROWS, "features.3.weight": Cut((12, 8, 3, 3), {1: (), 2: ()})}},
        r"empty dim 2 of features\.3\.weight, which has no channels",
    ),
    "a rewritten graph": ({"form": "graph"}, "from a rewritten graph"),
}


@pytest.mark.parametrize("name", BAD)
def test_plans_that_empty_something_else_are_refused(name: str) -> None:
    change, message = BAD[name]
    model = Chain()
    with pytest.raises(PlanError, match=message):
        PruningPlan(**{"cuts": ROWS, "empty": PATHS, **change}).apply(model)
    assert model.features[0].weight.shape == (8, 3, 3, 3)
    assert not any(is_empty_layer(m) for m in model.modules())


def test_a_plan_of_a_layer_that_needs_channels_is_refused() -> None:
    model = nn.Sequential(nn.PReLU(4))
    with pytest.raises(PlanError, match=r"empty 0 \(PReLU\), which needs at least one channel"):
        PruningPlan({"0.weight": Cut((4,), {0: ()})}, empty=("0",)).apply(model)


@pytest.mark.parametrize("paths", ["features.1", [1], ["a", "a"], None])
def test_json_names_each_layer_once(paths: Any) -> None:
    text = PruningPlan(ROWS, empty=PATHS).to_json()
    assert PruningPlan.from_json(text) == PruningPlan(ROWS, empty=PATHS)
    assert "empty" not in PruningPlan({"a": Cut((4,), {0: (1,)})}).to_json()  # as plans always were
    from json import dumps, loads

    with pytest.raises(PlanError, match="empty"):
        PruningPlan.from_json(dumps({**loads(text), "empty": paths}))
