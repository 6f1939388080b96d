"""PGD against what it must come to on losses whose worst input is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_prune import PGD

W = torch.tensor([[1.0, -2.0, 0.5]])


def linear(x: Tensor) -> Tensor:
    return (x * W).sum()


def test_on_a_linear_loss_it_ends_in_the_corner_of_the_box() -> None:
    x = torch.tensor([[0.2, 0.5, 0.9]])
    torch.testing.assert_close(PGD(0.1, 0.04, 3)(linear, x), x + 0.1 * W.sign())
    torch.testing.assert_close(PGD(0.1, 0.04, 2)(linear, x), x + 0.08 * W.sign())  # two steps do not reach it
    bounded = PGD(0.3, 0.1, 3, bounds=(0.0, 1.0))(linear, x)
    torch.testing.assert_close(bounded, torch.tensor([[0.5, 0.2, 1.0]]))


def test_it_stays_within_eps_of_any_start_and_climbs() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    start = 2 * torch.rand(4, 3, generator=torch.Generator().manual_seed(1)) - 1
    target = x + 0.03

    def loss(v: Tensor) -> Tensor:
        return -(v - target).square().sum()

    found = PGD(0.05, 0.01, 20)(loss, x, start)
    assert float((found - x).abs().max()) <= 0.05 + 1e-6
    assert not found.requires_grad
    torch.testing.assert_close(found, target, rtol=0.0, atol=0.011)  # it swings around by a step
    with torch.no_grad():  # also where gradients are off
        torch.testing.assert_close(PGD(0.05, 0.01, 20)(loss, x, start), found)


def test_what_is_out_of_range_is_named() -> None:
    for options in ({"eps": 0.0}, {"step": -0.1}, {"steps": 0}):
        with pytest.raises(ValueError, match="an attack needs positive numbers"):
            PGD(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bounds=\(1.0, 0.0\) must be the least and the greatest"):
        PGD(bounds=(1.0, 0.0))
