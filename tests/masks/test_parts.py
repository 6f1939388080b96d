"""Layers whose pruned weights get far larger gradients than their kept ones: none runs off."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_prune.functional.order.kth import Shards
from lightning_prune.masks.parts import limit_pruned_

TAU = torch.tensor([1.0])  # on w²


def test_pruned_weights_get_at_most_twice_what_kept_ones_get() -> None:
    w = torch.tensor([[2.0, -3.0, 0.5, 0.1], [1.0, 0.2, -0.3, 0.0]])  # 2, -3 and 1 stay
    grad = torch.tensor([[1.0, -1.0, 30.0, 40.0], [1.0, -50.0, 0.0, 0.0]])  # 1 beside sqrt(5000 / 5)
    limit_pruned_([w], [grad], TAU)
    shrunk = 2 / 1000**0.5
    wanted = [1, -1, 30 * shrunk, 40 * shrunk, 1, -50 * shrunk, 0, 0]
    assert grad.flatten().tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("kept", [1, 40, 99])
def test_where_all_matter_alike_nothing_changes(kept: int) -> None:
    w = torch.full((10, 10), 0.1)
    w.view(-1)[:kept] = 2.0
    grad = torch.ones(10, 10) * torch.tensor([1.0, -1.5]).repeat(5)
    before = grad.clone()
    limit_pruned_([w], [grad], TAU)
    assert torch.equal(grad, before)


@pytest.mark.parametrize("value", [0.1, 2.0])
def test_a_layer_that_keeps_nothing_or_all_is_left_alone(value: float) -> None:
    w, grad = torch.full((4, 4), value), torch.randn(4, 4)
    before = grad.clone()
    limit_pruned_([w], [grad], TAU)
    assert torch.equal(grad, before)


def test_the_scale_of_the_loss_does_not_count_and_nan_stays() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(16, 8), torch.randn(5, 3)]
    grads = [torch.where(w.square() >= 1, 1.0, 1e3) * torch.randn(w.shape) for w in weights]
    small, large = ([g * scale for g in grads] for scale in (1, 1024))
    for each in (small, large):
        limit_pruned_(weights, each, TAU.expand(2))
    assert all(torch.equal(a * 1024, b) and not torch.equal(a, g) for a, b, g in zip(small, large, grads, strict=True))
    grads[0][0, 0] = torch.nan
    alone = grads[0].clone()
    limit_pruned_(weights, grads, TAU.expand(2))
    torch.testing.assert_close(grads[0], alone, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(grads[1], small[1])


def test_parts_in_other_orders_of_memory_or_on_processes_are_limited_as_the_whole() -> None:
    torch.manual_seed(0)
    w = torch.randn(12, 1 << 9, 10, 10)  # longer than the pieces that are looked at
    grad = torch.where(w.square() >= 1, 1.0, 1e2) * torch.randn(w.shape)
    whole, mixed = grad.clone(), grad.clone(memory_format=torch.channels_last)
    limit_pruned_([w], [whole], TAU)
    limit_pruned_([w], [mixed], TAU)
    assert not torch.equal(whole, grad)
    torch.testing.assert_close(mixed.contiguous(), whole, rtol=1e-5, atol=1e-5)
    told: list[torch.Tensor] = []
    shares = [part.clone() for part in grad.split(4)]
    for noting in (True, False):  # what each process hands over, then with the sum of it
        for rank, (mine, share) in enumerate(zip(w.split(4), shares, strict=True)):
            total = (lambda x: told.append(x) or x * torch.nan) if noting else (lambda _: torch.stack(told).sum(0))
            limit_pruned_([mine], [share], TAU, Shards(rank, 3, total))
    torch.testing.assert_close(torch.cat(shares), whole, rtol=1e-5, atol=1e-5)


def test_behind_a_norm_a_layer_does_not_run_off() -> None:
    """Seen on EfficientNet-B0 at 20x: straight-through gradients let whole layers grow hundreds of times."""
    torch.manual_seed(0)
    x, goal = torch.randn(256, 32), torch.randn(256, 8)

    def grown(limited: bool) -> float:
        w = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)) * 0.1
        start, keep = w.norm(), w.numel() // 20
        for _ in range(100):
            tau = w.square().flatten().sort(descending=True).values[keep]
            masked = (w * (w.square() >= tau)).requires_grad_()
            loss = (F.batch_norm(x @ masked.T, None, None, training=True) - goal).square().mean()
            (grad,) = torch.autograd.grad(loss, masked)
            if limited:
                limit_pruned_([w], [grad], tau.view(1))
            w = w - 2 * grad
        return float(w.norm() / start)

    without, limited = grown(False), grown(True)
    assert limited < without / 3, (limited, without)
