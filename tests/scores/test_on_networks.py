"""What scores say of whole networks, against definitions: removals tried out, finite differences, invariances."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.channels import prune_channels
from lightning_prune.scores import find_score
from lightning_prune.scores.taylor import Taylor
from lightning_prune.scores.taylor_weight import TaylorWeight
from lightning_prune.scoring.collect import collect, run_network
from lightning_prune.scoring.loss import task_loss
from tests.channels.branching import EXAMPLE, residual
from tests.channels.models import Branches, Chain, randomise
from tests.scores.networks import convolutions, score_of, two_layers, units_of

LABELS = torch.tensor([1, 3])


def weighted_sum(output: Tensor, labels: Tensor | None) -> Tensor:
    return (output * torch.arange(1.0, 1 + output.shape[1], dtype=output.dtype)).sum(1).mean()


def gated(network: nn.Module, units: Any, group: int, gate: float) -> nn.Module:
    """A copy in which a gate stands before every weight that reads a group."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            ids = units.graph.axes.get(name, {}).get(1)
            if ids is not None:
                weight[:, ids == group] *= gate
    return other


def test_taylor_is_the_squared_change_of_a_linear_loss() -> None:
    network, x = two_layers(), torch.randn(5, 4, dtype=torch.float64)
    units = units_of(network, x)
    before = weighted_sum(network(x), None)
    lost = [weighted_sum(gated(network, units, g, 0.0)(x), None) - before for g in range(units.size)]
    found = score_of(units, Taylor(loss=weighted_sum), [x])
    torch.testing.assert_close(found, torch.stack(lost).detach().square())
    assert not any(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("make", [residual, lambda: randomise(Branches()), lambda: randomise(Chain())])
def test_taylor_is_the_slope_of_the_loss_at_an_open_gate(make: Any) -> None:
    """On streams that several layers read, layers that are called twice, and channels that are flattened."""
    network, x = make().double().eval(), EXAMPLE.double()
    units = units_of(network, x)
    step = 1e-5
    slopes = []
    for group in range(units.size):
        up, down = (task_loss(gated(network, units, group, 1 + s)(x), LABELS) for s in (step, -step))
        slopes.append((up - down) / (2 * step))
    found = score_of(units, "taylor", [(x, LABELS)])
    torch.testing.assert_close(found, torch.stack(slopes).detach().square(), rtol=1e-5, atol=1e-12)


def test_batches_are_averaged_after_the_square() -> None:
    network, (a, b) = two_layers(), torch.randn(2, 5, 4, dtype=torch.float64)
    units, score = units_of(network, a), Taylor(loss=weighted_sum)
    both = (score_of(units, score, [a]) + score_of(units, score, [b])) / 2
    torch.testing.assert_close(score_of(units, score, [a, b]), both)


def test_taylor_on_weights_needs_no_trained_weight() -> None:
    network, x = two_layers(), torch.randn(5, 4, dtype=torch.float64)
    units = units_of(network, x)
    for p in network.parameters():
        p.requires_grad_(False)
    found = score_of(units, TaylorWeight(loss=weighted_sum), [x])
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    weight = network[0].weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(weighted_sum(network(x), None), weight)
    torch.testing.assert_close(found, (weight * gradient).square().sum(1).detach())


def test_batch_norm_scales_ignore_signs_and_what_is_before_the_norm() -> None:
    network = residual()
    units = units_of(network, EXAMPLE)
    before = score_of(units, "bn_scale")
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim == 4:
                p.mul_(3.0)  # BatchNorm takes the scale of a filter out
            elif name.endswith("1.weight"):
                p.neg_()
    assert torch.equal(score_of(units, "bn_scale"), before)
    with torch.no_grad():
        network.blocks[0][0][1].weight[2] *= 0.5
    changed = score_of(units, "bn_scale") / before
    group = int(units.graph.axes["blocks.0.0.1.weight"][0][2])
    assert float(changed[group]) == pytest.approx(0.5)
    assert int((changed != 1).sum()) == 1


def test_random_is_seeded() -> None:
    units = units_of(two_layers(), torch.zeros(1, 4, dtype=torch.float64))
    one, same = (score_of(units, "random") for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, score_of(units, find_score("random").__class__(seed=1)))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    score_of(units, "random")
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("batches", [1, 3])
def test_what_does_not_vary_goes_first_and_leaves_its_mean(padding: int, batches: int) -> None:
    network, x = convolutions(padding), torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network[0].weight[[2, 5]] = 0
        network[0].bias[[2, 5]] = torch.tensor([1.5, 0.7])
        network[2].weight.normal_()
        expected = network(x)
    pruned = copy.deepcopy(network)
    result = prune_channels(pruned, x, score="variance", batches=[x] * batches, channels=0.86)
    assert result.plan.cuts["0.weight"].kept[0] == (0, 1, 3, 4, 6, 7)
    with torch.no_grad():
        error = (pruned(x) - expected).abs().max()
        # A constant that zero padding cuts off is made good in the middle of the map.
        assert error < (1e-5 if padding == 0 else 0.5 * (without_means(network, x) - expected).abs().max())


def without_means(network: nn.Module, x: Tensor) -> Tensor:
    other = copy.deepcopy(network)
    prune_channels(other, x, keep={"0": [0, 1, 3, 4, 6, 7]})
    return other(x)


def test_variances_are_those_of_what_the_next_layer_reads() -> None:
    network, x = convolutions(), torch.randn(2, 2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    units = units_of(network, x[0])
    found = score_of(units, "variance", list(x))
    read = torch.stack([network[:2](part) for part in x]).detach().transpose(0, 2).flatten(1)
    ids = units.graph.axes["0.weight"][0]
    torch.testing.assert_close(found[ids], read.double().var(1, correction=0), rtol=1e-5, atol=1e-8)
    pooled = torch.cat([network[:7](part) for part in x]).detach()
    ids = units.graph.axes["2.weight"][0]
    torch.testing.assert_close(found[ids], pooled.double().var(0, correction=0), rtol=1e-5, atol=1e-8)


class Auxiliary(nn.Module):
    """Has a head of two layers in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.side = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return (self.head(x), self.side(x)) if self.training else self.head(x)


@pytest.mark.parametrize("score", ["taylor", "taylor_weight", "taylor_activation", "variance"])
def test_what_no_batch_runs_through_is_not_judged(score: str) -> None:
    torch.manual_seed(0)
    network, x = Auxiliary(), torch.randn(8, 4)
    units = units_of(network, x)
    found = score_of(units, score, [(x, torch.randint(3, (8,)))])
    assert found[units.graph.axes["stem.weight"][0]].isfinite().all()
    assert found[units.graph.axes["side.0.weight"][0]].isinf().all()


def test_looking_changes_nothing() -> None:
    network, x = residual().train(), EXAMPLE
    network.head.weight.grad = torch.ones_like(network.head.weight)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    units = units_of(network, x)
    for name in ("taylor", "taylor_weight", "variance", "hrank"):
        rating = find_score(name)
        collect(rating, units, [(x, LABELS)], run_network(network))
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(network.head.weight.grad, torch.ones_like(network.head.weight))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


LOSSES = [
    (torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), nn.functional.cross_entropy),
    (torch.randn(4, 3), torch.randn(4, 3), nn.functional.mse_loss),
    (torch.randn(4, 3), torch.randn(4, 3).softmax(1), nn.functional.cross_entropy),
    (torch.randn(4, 3, 2, 2), torch.randint(0, 3, (4, 2, 2)), nn.functional.cross_entropy),
]


@pytest.mark.parametrize(("output", "labels", "expected"), LOSSES)
def test_the_loss_of_the_task(output: Tensor, labels: Tensor, expected: Any) -> None:
    torch.testing.assert_close(task_loss(output, labels), expected(output, labels))


@pytest.mark.parametrize("labels", [None, torch.ones(4, 2)])
def test_a_task_without_a_known_loss_is_refused(labels: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"no loss is known for an output of \(4, 3\) .*score=Taylor\(loss="):
        task_loss(torch.ones(4, 3), labels)
