"""Outputs whose weights are nearly all pruned: none runs off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.functional.order.kth import WHOLE, Shards
from lightning_prune.masks.gates import HardGate, SoftGate
from lightning_prune.masks.rows import limit_rows_


def limit(grads: list[torch.Tensor], shards: Shards = WHOLE, rows: list[int] | None = None, left: float = 1.0) -> None:
    """Of layers of which the mask leaves this share of every row's norm."""
    weights = [torch.ones_like(g) for g in grads]
    limit_rows_(grads, weights, [left * w for w in weights], shards, rows)


class Launches(TorchDispatchMode):
    """Counts operations that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func is torch.ops.aten.split_with_sizes.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("left", [1.0, 0.5])
def test_no_row_is_above_four_times_the_upper_quartile_of_those_that_are_not_zero(left: float) -> None:
    sizes = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1000.0])  # the third largest of eight: 6
    grad = sizes.view(-1, 1, 1).repeat(1, 4, 4) / 4
    limit([grad], left=left)
    assert grad.flatten(1).norm(dim=1).tolist() == pytest.approx([0, 0, 1, 2, 3, 4, 5, 6, 7, 24 * left])


@pytest.mark.parametrize("fading", [0, 1, 3, 6])
def test_rows_that_fade_are_limited_by_the_others_however_many_they_are(fading: int) -> None:
    """At 50x more than a quarter of the rows of EfficientNet-B0's pointwise layers fade within a step."""
    torch.manual_seed(0)
    weights, left = torch.randn(9, 16), torch.full((9, 1), 0.5)
    left[:fading] = 1e-4
    grad = torch.randn(9, 16) / (weights * left).norm(dim=1, keepdim=True)  # behind a norm
    limited = grad.clone()
    limit_rows_([limited], [weights], [weights * left])
    assert torch.equal(limited[fading:], grad[fading:])
    largest = (0.5 * grad[fading:]).norm(dim=1).max()
    assert limited[:fading].norm(dim=1).tolist() == pytest.approx([0.0] * fading, abs=8 * float(largest))


def test_of_a_row_that_is_empty_the_gradient_is_limited_and_not_zero() -> None:
    weights = torch.ones(5, 4)
    masked = weights * torch.tensor([0.0, 1, 1, 1, 1]).view(-1, 1)
    grad = weights * torch.tensor([100.0, 1, 1, 1, 1]).view(-1, 1)
    limit_rows_([grad], [weights], [masked])
    assert torch.equal(grad, weights * torch.tensor([4.0, 1, 1, 1, 1]).view(-1, 1))


def test_the_scale_of_the_loss_does_not_count() -> None:
    grad = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 16).view(-1, 1)
    small, large = grad.clone(), grad * 1024
    limit([small])
    limit([large])
    assert torch.equal(small * 1024, large)
    assert not torch.equal(small, grad)


def test_many_layers_at_once_are_each_as_alone() -> None:
    """Bit for bit: other layers, of zeros, of one row, or with a gradient that is not finite, do not count."""
    torch.manual_seed(0)
    shapes = [(24, 3, 3, 3), (7, 5), (1, 4), (24, 1, 3, 3), (5, 16), (9, 2)]
    grads = [torch.randn(shape) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1)) for shape in shapes]
    grads[0] = grads[0].to(memory_format=torch.channels_last)
    grads[1][2:], grads[3][:20], grads[4][:] = 0, 0, 0
    grads[5][3, 1] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        alone, together = ([g.to(dtype, copy=True) for g in grads] for _ in range(2))
        for grad in alone:
            limit([grad])
        limit(together)
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert not torch.equal(together[0], grads[0].to(dtype))


def test_rows_on_three_processes_are_limited_as_the_whole() -> None:
    torch.manual_seed(0)
    whole = [torch.randn(n, 5) * torch.logspace(-3, 3, n).view(-1, 1) for n in (7, 4, 12)]  # of 4, the third has none
    rows, told = [len(g) for g in whole], list[torch.Tensor]()

    def note(table: torch.Tensor) -> torch.Tensor:
        told.append(table)
        return table

    for noting in (True, False):  # what each hands over, then with the sum of it
        shares = [[g[r * -(-len(g) // 3) :][: -(-len(g) // 3)].clone() for g in whole] for r in range(3)]
        for rank, share in enumerate(shares):
            limit(share, Shards(rank, 3, note if noting else lambda _: torch.stack(told).sum(0)), rows)
    limited = [torch.cat(parts) for parts in zip(*shares, strict=True)]
    limit(whole)
    assert all(torch.equal(one, other) for one, other in zip(limited, whole, strict=True))


def test_a_layer_costs_a_device_four_launches() -> None:
    """Norms of its gradient, its weights and what the mask leaves, and a product; the rest is for all at once."""

    def kernels(layers: int) -> int:
        grads, weights, masked = ([torch.empty(8, 4, 3, 3, device="meta") for _ in range(layers)] for _ in range(3))
        with Launches() as launches:
            limit_rows_(grads, weights, masked)
        return launches.count

    kernels(8)  # which layer a row is of is worked out once
    kernels(4)
    assert kernels(8) - kernels(4) == 4 * 4


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_behind_a_norm_no_fading_output_jumps(kind: str) -> None:
    """Seen on MobileNetV2 at 20x: straight-through gradients of dying outputs grew until the training diverged."""
    torch.manual_seed(0)
    w = torch.randn(8, 64, dtype=torch.float64)
    w[0] = 0.3  # below the threshold, but for one
    w[0, 0] = 0.33
    x, goal = torch.randn(256, 64, dtype=torch.float64), torch.randn(256, 8, dtype=torch.float64)
    tau, temperature = w.new_tensor(0.315**2), w.new_tensor(1e-5)
    gates = {"soft": SoftGate(1 / temperature, -tau / temperature, feedback=1.0), "hard": HardGate(tau, 1.0)}

    def gradient(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.detach().requires_grad_()
        (grad,) = torch.autograd.grad((F.batch_norm(x @ weight.T, None, None, training=True) * goal).sum(), weight)
        return grad

    param = torch.nn.Parameter(w.clone())
    masked = gates[kind](param).detach().clone()
    dense, raw = gradient(w), gradient(masked)
    fed = raw.clone()
    gates[kind].step_(param.detach(), fed, False)
    limit_rows_([fed], [w], [masked])
    before, after, usual = (float(g[0].norm() / v[0].norm()) for g, v in ((raw, masked), (fed, masked), (dense, w)))
    assert before > 30 * usual
    assert after < before / 3
    assert torch.equal(fed[1:], raw[1:])
