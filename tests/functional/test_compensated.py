"""Norms that count channels that are gone: PyTorch's own norms of the channels that are left and of zeros."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_prune.functional.norms.compensated import OPERATORS

K, C = 6, 10


def _padded(x: Tensor, groups: int = 1, dim: int = -1) -> Tensor:
    """Zeros behind the channels of each group."""
    parts = x.movedim(dim, -1).unflatten(-1, (groups, K // groups))
    return F.pad(parts, (0, (C - K) // groups)).flatten(-2).movedim(-1, dim)


def _kept(x: Tensor, groups: int, dim: int) -> Tensor:
    return x.movedim(dim, -1).unflatten(-1, (groups, C // groups))[..., : K // groups].flatten(-2).movedim(-1, dim)


Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def _group(groups: int) -> tuple[Norm, Norm, tuple[int, ...]]:
    def ours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return OPERATORS["group_norm"](x, groups, w, b, 1e-5, C)

    def wide(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        w, b = _padded(w, groups), _padded(b, groups)
        return _kept(F.group_norm(_padded(x, groups, 1), groups, w, b, 1e-5), groups, 1)

    return ours, wide, (3, K, 4, 5)


NORMS: dict[str, tuple[Norm, Norm, tuple[int, ...]]] = {
    "layer": (
        lambda x, w, b: OPERATORS["layer_norm"](x, [K], w, b, 1e-5, C),
        lambda x, w, b: F.layer_norm(_padded(x), (C,), _padded(w), _padded(b), 1e-5)[..., :K],
        (3, 4, K),
    ),
    "rms": (
        lambda x, w, b: OPERATORS["rms_norm"](x, [K], w, None, C) + b,
        lambda x, w, b: F.rms_norm(_padded(x), (C,), _padded(w))[..., :K] + b,
        (3, 4, K),
    ),
    "group of all": _group(1),
    "two groups": _group(2),
}


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Input, scale and shift."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=dtype).add_(0.5).requires_grad_() for s in (shape, (K,), (K,))]


@pytest.mark.parametrize("name", NORMS)
def test_it_is_the_norm_of_all_channels_and_so_are_its_gradients(name: str) -> None:
    ours, wide, shape = NORMS[name]
    given = drawn(shape)
    found, expected = ours(*given), wide(*given)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found, wide(*given) * 0 + F.layer_norm(found, found.shape), atol=1e-3)
    seed = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mine, theirs in zip(*(torch.autograd.grad(y, given, seed) for y in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_with_all_channels_it_is_pytorchs_own() -> None:
    x, w, b = drawn((3, 4, K))
    torch.testing.assert_close(OPERATORS["layer_norm"](x, [K], w, b, 1e-5, K), F.layer_norm(x, (K,), w, b))
    torch.testing.assert_close(OPERATORS["rms_norm"](x, [K], w, None, K), F.rms_norm(x, (K,), w))


def test_a_large_mean_costs_no_more_digits_than_in_pytorchs_own() -> None:
    x = 1e4 + torch.randn(64, K, generator=torch.Generator().manual_seed(0))
    exact = F.layer_norm(_padded(x.double()), (C,))[..., :K]
    ours = (OPERATORS["layer_norm"](x, [K], None, None, 1e-5, C) - exact).abs().max()
    own = (F.layer_norm(_padded(x), (C,))[..., :K] - exact).abs().max()
    assert ours <= max(2 * own, 1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_gives_the_dtype_that_pytorch_gives(autocast: bool) -> None:
    x = torch.randn(3, K, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.ones(K) if autocast else torch.ones(K, dtype=torch.bfloat16)
    with torch.autocast("cpu", enabled=autocast):
        found = OPERATORS["layer_norm"](x, [K], weight, None, 1e-5, C)
        own = F.layer_norm(x, (K,), weight)
    assert found.dtype == own.dtype
    exact = F.layer_norm(_padded(x.float()), (C,))[..., :K]
    torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("frozen", [False, True])
def test_its_first_and_second_derivatives_are_those_of_differences(name: str, frozen: bool) -> None:
    ours, _, shape = NORMS[name]
    given = drawn(shape)
    for parameter in given[1:]:
        parameter.requires_grad_(not frozen)
    assert torch.autograd.gradcheck(ours, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, given, fast_mode=True)


@pytest.mark.parametrize("name", NORMS)
def test_a_trace_and_transforms_compute_the_same(name: str) -> None:
    ours, _, shape = NORMS[name]
    given = [t.detach() for t in drawn(shape)]
    expected, (x, w, b) = ours(*given), given
    same = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    same(torch.jit.trace(ours, tuple(given), check_trace=False)(*given), expected)
    same(torch.vmap(lambda one: ours(one[None], w, b)[0])(x), expected)
    [grad] = torch.autograd.grad(ours(x.requires_grad_(), w, b).square().sum(), x)
    same(torch.func.grad(lambda x: ours(x, w, b).square().sum())(x.detach()), grad)


def test_the_layout_of_what_comes_in_does_not_matter() -> None:
    x, w, b = drawn((3, K, 4))
    turned = x.mT  # [3, 4, K], its channels apart
    found = OPERATORS["layer_norm"](turned, [K], w, b, 1e-5, C)
    expected = OPERATORS["layer_norm"](turned.contiguous(), [K], w, b, 1e-5, C)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for mine, theirs in zip(*(torch.autograd.grad(y.sum(), (x, w, b)) for y in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda x: OPERATORS["layer_norm"](x.mT, [K], w, b, 1e-5, C), x, fast_mode=True)
