"""Least squares of a layer's weights: what is exact, what the ridge does, what a factor a channel can explain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_prune.functional.least_squares import errors, least_squares


def made(form: str, bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """Inputs, weights at hand, and outputs of other weights that a refit of that form can find."""
    torch.manual_seed(0)
    x = torch.randn(60, 4, 3, dtype=torch.float64) + 1
    weight = torch.randn(5, 4, 3, dtype=torch.float64)
    other = torch.randn_like(weight) if form == "weights" else weight * torch.tensor([2.0, 0.5, -1.0, 1.0])[:, None]
    shift, at_hand = (
        (torch.randn(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)) if bias else (None, None)
    )
    return x, -errors(x, torch.zeros(60, 5), other, shift), weight, at_hand, other, shift


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["weights", "scale"])
def test_what_can_be_explained_is_found(form: Any, bias: bool) -> None:
    x, y, weight, at_hand, other, shift = made(form, bias)
    new, found = least_squares(x, y, weight, at_hand, form, ridge=1e-12)
    torch.testing.assert_close(new, other, rtol=1e-8, atol=1e-8)
    if shift is None:
        assert found is None
    else:
        torch.testing.assert_close(found, shift, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("form", ["weights", "scale"])
def test_a_large_ridge_leaves_the_weights(form: Any) -> None:
    x, y, weight, _, _, _ = made(form, False)
    torch.testing.assert_close(least_squares(x, y, weight, None, form, ridge=1e12)[0], weight, rtol=1e-8, atol=1e-8)


def test_the_refit_is_where_the_gradient_vanishes() -> None:
    x, y, weight, _, _, _ = made("weights", False)
    y, ridge = y + torch.randn_like(y), 0.1
    new = least_squares(x, y, weight, None, "weights", ridge)[0].requires_grad_()
    level = ridge * x.square().mean()
    objective = errors(x, y, new, None).square().sum() / len(x) + level * (new - weight).square().sum()
    (gradient,) = torch.autograd.grad(objective, new)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)


def test_channels_that_do_nothing_do_no_harm() -> None:
    x, y, weight, bias, _, _ = made("weights", True)
    x = x.clone()
    x[:, 1] = 0
    new, _ = least_squares(x, y, weight, bias)
    torch.testing.assert_close(new[:, 1], weight[:, 1])
    assert bool(new.isfinite().all())
