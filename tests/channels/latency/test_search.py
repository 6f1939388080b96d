"""The search for widths: against all widths of small networks, and against a clock that knows more than the table."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from lightning_prune import ChannelGraph, ChannelUnits, PlanError
from lightning_prune.channels.latency.layers import LayerShape
from lightning_prune.channels.latency.search import LatencySearch
from lightning_prune.channels.remove import remove_channels
from lightning_prune.channels.select.selector import Selector
from tests.channels.latency.clocks import Counter, macs
from tests.channels.models import Chain


def search(model: nn.Module, meter: Counter, size: int = 8, **options: Any) -> LatencySearch:
    units = ChannelUnits.of(model.eval(), ChannelGraph.trace(model, torch.zeros(2, 3, size, size)))
    limits: dict[str, Any] = {"min_channels": 1, "divisor": 1} | options
    return LatencySearch(Selector(units, rule=None, budget=None, delta=0.0, **limits), meter, batch=1)


def scores(found: LatencySearch, seed: int = 0) -> torch.Tensor:
    return torch.rand(found.selector.units.size, generator=torch.Generator().manual_seed(seed)).double()


def best_of_all(found: LatencySearch, score: torch.Tensor, budget: float) -> float:
    """The most importance of any widths, the best groups of each layer first, by trying all."""
    units, best = found.selector.units, 0.0
    orders = [torch.nonzero(units.layer == i).flatten() for i in range(len(units.layers))]
    orders = [mine[score[mine].argsort(descending=True)] for mine in orders]
    for widths in itertools.product(*(range(1, len(mine) + 1) for mine in orders)):
        keep = torch.ones(units.size, dtype=torch.bool)
        for mine, n in zip(orders, widths, strict=True):
            keep[mine[n:]] = False
        if found.seconds(keep) <= budget * (1 + 1e-9):
            best = max(best, float(score[keep].sum()))
    return best


def stairs(shape: LayerShape) -> float:
    """Whole blocks of two channels cost alike, as they do in vector units; and each call something."""
    return 40.0 + macs(shape) / (shape.inputs * shape.outputs) * (-(-shape.inputs // 2)) * (-(-shape.outputs // 2))


@pytest.mark.parametrize("layer", [macs, stairs])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_of_a_chain_it_keeps_what_is_best_within_the_time(layer: Any, share: float) -> None:
    found = search(Chain((6, 8, 6)), Counter(layer))
    score = scores(found)
    budget = share * found.seconds(torch.ones(len(score), dtype=torch.bool))
    keep = found.solve(score, budget)
    assert found.seconds(keep) <= budget * (1 + 1e-9)
    assert float(score[keep].sum()) >= 0.98 * best_of_all(found, score, budget)


def test_of_layers_that_do_not_meet_it_is_the_best_of_all() -> None:
    """Between two fixed widths a layer's time depends on its own width alone: the knapsack is the whole problem."""

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList(nn.Linear(3, width) for width in (4, 6, 5))
            self.up = nn.ModuleList(nn.Linear(width, 3) for width in (4, 6, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(2).transpose(1, 2)
            for down, up in zip(self.down, self.up, strict=True):
                x = x + up(down(x).relu())
            return x

    found = search(Apart(), Counter())
    score = scores(found)
    for share in (0.3, 0.62):  # between whole channels: on one, the knapsack's rounding up may cost a channel
        budget = share * found.seconds(torch.ones(len(score), dtype=torch.bool))
        keep = found.solve(score, budget)
        assert float(score[keep].sum()) == pytest.approx(best_of_all(found, score, budget), abs=1e-9)


@pytest.mark.parametrize("target", [0.35, 0.7])
def test_the_compact_network_takes_what_was_asked_though_the_table_knows_only_a_part(target: float) -> None:
    """The network's clock has a part that no layer shrinks, and the table is off by up to a fifth at random."""
    model, x = Chain((24, 32, 24)), torch.zeros(2, 3, 8, 8)
    meter = Counter(noise=0.2, rest=1e5)
    found = search(model, meter)
    aim = found.aim(scores(found), x, target)
    assert aim.ratio == pytest.approx(target, rel=0.03)
    loaded = len(meter.batches)
    assert loaded > 2  # the dense network, and what was tried
    again = found.aim(scores(found), x, target, removal=True)  # no score has moved: nothing is cut or timed anew
    assert len(meter.batches) == loaded
    assert again.ratio == aim.ratio
    assert torch.equal(again.selection.keep, aim.selection.keep)
    pruned = remove_channels(model, x, found.selector, aim.selection, constants="drop", verify=False)
    dense, compact = (1e5 + macs for macs in pruned.macs)
    assert compact / dense == pytest.approx(aim.ratio, rel=1e-3)


def test_widths_are_multiples_of_the_divisor_above_the_floor() -> None:
    found = search(Chain((32, 48, 32)), Counter(), divisor=8, min_channels=0.25)
    score = scores(found)
    whole = found.seconds(torch.ones(len(score), dtype=torch.bool))
    for share in (0.15, 0.5):
        kept = [n for n, _ in found.selector.select(score, keep=found.solve(score, share * whole)).kept]
        assert all(n % 8 == 0 for n in kept)
        assert all(n >= 0.25 * size for n, size in zip(kept, (32, 48, 32), strict=True))


def test_what_the_floors_do_not_allow_is_an_error() -> None:
    found = search(Chain(), Counter(), min_channels=0.9)
    with pytest.raises(PlanError, match=r"target_latency=0.1 cannot be met: .* still takes 0\.\d+ .* in counted"):
        found.aim(scores(found), torch.zeros(2, 3, 8, 8), 0.1)


def test_a_network_without_layers_to_time_is_an_error() -> None:
    with pytest.raises(PlanError, match="no convolution or linear layer of Sequential can get narrower"):
        search(nn.Sequential(nn.Conv2d(3, 4, 1)), Counter())
