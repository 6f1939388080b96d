"""Depths: what branches add while two are drawn, what is expected of them, and which may go under a budget."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_prune.channels.analysis.stages import Branch, Stage
from lightning_prune.channels.graph.cost import ChannelCost
from lightning_prune.channels.graph.expected import ExpectedMacs
from lightning_prune.channels.graph.graph import ChannelGraph
from lightning_prune.channels.select.selector import Selector
from lightning_prune.channels.select.units import ChannelUnits
from lightning_prune.masks.depths import Depths
from tests.callbacks.test_branches import Residual

CPU = torch.device("cpu")
THIRDS = (1 / 3, 2 / 3, 1.0)


def several(*stages: tuple[int, int]) -> Depths:
    """Stages of so many blocks, of which the last so many may go."""
    none = torch.zeros(0, dtype=torch.bool)
    made = [
        Stage(blocks, tuple(Branch(f"{i}.{k}", frozenset(), none) for k in range(free)))
        for i, (blocks, free) in enumerate(stages)
    ]
    return Depths(made, THIRDS, CPU)


def test_the_last_branches_of_a_stage_go_first() -> None:
    depths = several((6, 5), (3, 3), (6, 3))
    assert depths.counts.counts == [[2, 4, 6], [1, 2, 3], [2, 4, 6]]
    kept = depths.reached([2, 2, 4])
    assert [depths.branches[i].end for i in kept.nonzero().flatten()] == ["0.0", "1.0", "1.1", "2.0"]
    with torch.no_grad():
        depths.counts.logits.copy_(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.2]]))
    p = depths.counts.logits.detach().softmax(1)
    most, all_of = p[:, 1] + p[:, 2], p[:, 2]
    first = [1.0, most[0], most[0], all_of[0], all_of[0]]
    wanted = torch.tensor([*first, 1.0, most[1], all_of[1], most[2], all_of[2], all_of[2]])
    torch.testing.assert_close(depths.runs().detach(), wanted)


def test_a_gate_weighs_what_a_branch_adds_by_the_depths_that_reach_it() -> None:
    depths = several((3, 3))
    gates, x = list(depths.gates().values()), torch.randn(2, 4)
    assert [len(g.parameters()) for g in gates] == [1, 0, 0]
    weights = torch.tensor([[0.3, 0.7]], requires_grad=True)
    depths.counts.drawn = [[0, 1]], weights  # one block and two
    for gate, factor in zip(gates, (1.0, 0.7, 0.0), strict=True):
        torch.testing.assert_close(gate(x), factor * x)
    (grad,) = torch.autograd.grad(gates[1](x).sum(), weights)
    torch.testing.assert_close(grad, torch.stack([torch.tensor(0.0), x.sum()])[None])
    gates[0].expire()
    with torch.no_grad():
        depths.counts.logits[0, 1] = 1.0  # the most likely: two
    for gate, factor in zip(gates, (1.0, 1.0, 0.0), strict=True):
        assert torch.equal(gate(x), factor * x)


@pytest.fixture(scope="module")
def residual() -> ChannelUnits:
    torch.manual_seed(1)
    net = Residual()
    net.eval()
    return ChannelUnits.of(net, ChannelGraph.trace(net, torch.zeros(2, 1, 8, 8)))


def of(units: ChannelUnits) -> Depths:
    depths = Depths.of(units, (0.5, 1.0), "auto", (), CPU)
    assert depths is not None
    return depths


def test_expected_macs_are_the_mean_over_widths_and_depths(residual: ChannelUnits) -> None:
    depths, cost = of(residual), ChannelCost.of(residual.graph)
    assert [b.end for b in depths.branches] == ["blocks.0.4", "blocks.1.4"]
    with torch.no_grad():
        depths.counts.logits.copy_(torch.tensor([[0.4, -0.3]]))
    used = torch.ones(residual.size)
    halves = {0: residual.graph.axes["stem.0.weight"][0][4:], 1: residual.graph.axes["blocks.1.0.weight"][0][3:]}
    used[halves[0]], used[halves[1]] = 0.6, 0.2
    wanted, p = 0.0, depths.counts.logits.detach().softmax(1)[0]
    for stream, inner, depth in itertools.product((False, True), (False, True), (0, 1)):
        keep = torch.ones(residual.size, dtype=torch.bool)
        keep[halves[0]], keep[halves[1]] = stream, inner
        for branch in depths.branches[depth + 1 :]:
            keep[branch.inside] = False
        chance = (0.6 if stream else 0.4) * (0.2 if inner else 0.8) * float(p[depth])
        wanted += chance * cost.macs(keep) / cost.macs()
    expected = ExpectedMacs(cost, CPU, branches=depths.layers())
    found = expected(used, runs=depths.runs())
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-5)
    (grad,) = torch.autograd.grad(found, depths.counts.logits)
    step = 1e-2
    for k in (0, 1):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                depths.counts.logits[0, k] += sign * step
                values.append(float(expected(used, runs=depths.runs().detach())))
                depths.counts.logits[0, k] -= sign * step
        assert float(grad[0, k]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-2)


def test_branches_stay_where_less_than_the_budget_would_be_left(residual: ChannelUnits) -> None:
    depths = of(residual)
    with torch.no_grad():
        depths.counts.logits.copy_(torch.tensor([[1.0, 0.0]]))
    selector = Selector(residual, rule=None, budget=("macs", 0.5), delta=0.0, min_channels=1, divisor=1)
    last = depths.branches[1:]
    assert depths.skipped(None, ("macs", 0.9)) == depths.skipped(selector, None) == last
    assert depths.skipped(selector, ("macs", 0.4)) == last  # the stem and a branch are half of the network
    assert depths.skipped(selector, ("macs", 0.9)) == []
